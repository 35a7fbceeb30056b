"""A model's spec from what the compiler found in its graph."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coxcompile.planner.model_spec import ModelSpec, model_from_config

if TYPE_CHECKING:  # both import torch
    from coxcompile.inspect.explanation import Explanation
    from coxcompile.passes import MoEBlock


def model_from_blocks(
    explanation: "Explanation",
    config: Any = None,
    *,
    name: str = "model",
    tied_embeddings: bool = False,
    **sizes: int,
) -> ModelSpec:
    """The spec of the model that :func:`coxcompile.explain` was asked about.

    The MoE blocks of its graph give experts, top_k, hidden, expert_dim, element_bytes and the
    number of MoE layers. Everything else is no part of a block and is read from ``config``, or
    given.

    Args:
        explanation: of the whole model; its blocks must all have the same dimensions.
        config: the model's Hugging Face config, if it has one.
        name: as reports show it.
        tied_embeddings: without a config, whether embedding and output head are one matrix.
        sizes: without a config, :class:`ModelSpec`'s other fields: query_heads, kv_heads, head_dim,
            vocabulary, and where they are not the default, layers (default: the MoE layers),
            shared_dim, dense_dim, qkv_elements, output_elements, kv_elements.

    Raises:
        ValueError: there is no block, two differ, the config contradicts them, or a size is
            missing; the message says which.
    """
    blocks = explanation.blocks
    if not blocks:
        raise ValueError(f"the explanation has no MoE block to describe: {explanation}")
    first = blocks[0]
    for block in blocks:
        if _dimensions(block) != _dimensions(first):
            raise ValueError(
                f"the MoE blocks differ, and a ModelSpec has one size for all: {first} and {block}"
            )
    # A graph over micro-batches holds a layer's block more than once.
    moe_layers = len({block.path for block in blocks})
    found = _dimensions(first)
    if config is not None:
        if sizes:
            raise ValueError(
                f"{', '.join(sizes)} given beside a config, which says so too: leave one out"
            )
        return _checked(model_from_config(config, name), found, moe_layers)
    if missing := [size for size in _NEEDED if size not in sizes]:
        raise ValueError(
            f"{', '.join(missing)} missing: no MoE block shows them; give them, or the config"
        )
    layers = sizes.pop("layers", moe_layers)
    if layers < moe_layers:
        raise ValueError(f"layers is {layers}, but the graph has {moe_layers} MoE layers")
    return ModelSpec(
        name=name,
        layers=layers,
        dense_layers=layers - moe_layers,
        tied_embeddings=tied_embeddings,
        **found,
        **sizes,
    )


_NEEDED = ("query_heads", "kv_heads", "head_dim", "vocabulary")


def _dimensions(block: "MoEBlock") -> dict[str, int]:
    return {
        "experts": block.experts,
        "top_k": block.top_k,
        "hidden": block.hidden,
        "expert_dim": block.intermediate,
        "element_bytes": block.dtype.itemsize,
    }


def _checked(spec: ModelSpec, found: dict[str, int], moe_layers: int) -> ModelSpec:
    for field, value in {**found, "moe_layers": moe_layers}.items():
        # The config's dtype is the checkpoint's, the graph's is what runs.
        if field != "element_bytes" and getattr(spec, field) != value:
            raise ValueError(
                f"{field} is {value} in the graph but {getattr(spec, field)} in the config: is it "
                "this model's, and did the whole model compile?"
            )
    return replace(spec, element_bytes=found["element_bytes"])
