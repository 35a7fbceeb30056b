"""``coxmoe models``: the models that can be named."""

from coxcompile.commands.options import AsJson, print_json
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.models import MODELS


def models(json: AsJson = False) -> None:
    """List the models that can be named, with their sizes."""
    if json:
        print_json(list(MODELS.values()))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(
        caption="all, active: billions of parameters, and those that a token meets\n"
        "GB: weights; kB: a token's cache; both in bfloat16",
        box=SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("model", no_wrap=True)
    for title in ("layers", "experts", "hidden", "width", "all", "active", "GB", "kB"):
        table.add_column(title, justify="right", no_wrap=True)
    for spec in MODELS.values():
        table.add_row(
            spec.name,
            str(spec.layers),
            f"{spec.top_k} of {spec.experts}",
            str(spec.hidden),
            str(spec.expert_dim),
            f"{spec.total_bytes / spec.element_bytes / 1e9:.1f}",
            f"{_active_parameters(spec) / 1e9:.1f}",
            f"{spec.total_bytes / 1e9:.0f}",
            f"{spec.layers * spec.kv_bytes / 1e3:.0f}",
        )
    Console().print(table)


def _active_parameters(spec: ModelSpec) -> float:
    """Those that one token meets; of the embedding that is one row."""
    embedding_bytes = 0 if spec.tied_embeddings else spec.head_bytes
    experts_bytes = spec.moe_layers * spec.top_k * spec.expert_bytes
    return (spec.other_bytes - embedding_bytes + experts_bytes) / spec.element_bytes
