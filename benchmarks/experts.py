"""Times the routed experts of one MoE layer: coxmoe's op beside others and beside the roofline.

Every implementation gets the same weights, hidden states and routing; a new draw of both each
repeat. The implementations take turns, each right after a probe of the roofline, and what is
printed are medians: milliseconds, and the roofline's time as a fraction of the measured time.
"""

import argparse
import difflib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch.nn import functional
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

import coxcompile.ops  # noqa: F401  (registers the op)
from coxcompile.measurement.roofline import Roofline, measure_roofline
from coxcompile.measurement.scheduling import scheduled_first

DTYPE = torch.bfloat16
ROUTINGS = ("uniform", "skewed")
COXMOE = "coxmoe"
ROOFLINE = "roofline"

Experts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden_states [T, H], expert_ids [T, top_k], routing_weights [T, top_k]) -> [T, H]."""


@dataclass(frozen=True)
class Layer:
    """The dimensions of a layer's routed experts."""

    name: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int


LAYERS = {
    layer.name: layer
    for layer in (
        Layer("Qwen3-30B-A3B", experts=128, top_k=8, hidden=2048, intermediate=768),
        Layer("Mixtral-8x7B", experts=8, top_k=2, hidden=4096, intermediate=14336),
        Layer("DeepSeek-V2-Lite", experts=64, top_k=6, hidden=2048, intermediate=1408),
    )
}


@dataclass(frozen=True)
class Row:
    """One implementation's result; over_roofline is the roofline's time / the measured time."""

    layer: str
    tokens: int
    routing: str
    implementation: str
    milliseconds: float
    over_roofline: float


@dataclass(frozen=True)
class Weights:
    """gate_up [E, 2I, H] and down [E, H, I]."""

    gate_up: torch.Tensor
    down: torch.Tensor


def random_weights(layer: Layer) -> Weights:
    """Weights that keep activations of unit scale, different for every expert."""

    def stacked(outputs: int, inputs: int) -> torch.Tensor:
        weight = torch.empty(layer.experts, outputs, inputs, dtype=DTYPE)
        # One expert's numbers, shifted for the others: drawing gigabytes takes longer than timing.
        drawn = (torch.randn(outputs * inputs) * inputs**-0.5).to(DTYPE)
        for expert in range(layer.experts):
            weight[expert] = drawn.roll(expert * 131).view(outputs, inputs)
        return weight

    return Weights(
        gate_up=stacked(2 * layer.intermediate, layer.hidden),
        down=stacked(layer.hidden, layer.intermediate),
    )


def random_inputs(
    layer: Layer, tokens: int, routing: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [T, H], expert ids [T, top_k] and routing weights [T, top_k].

    Uniform: all experts equally likely. Skewed: by Zipf's law, the order of the experts random.
    """
    popularity = torch.ones(layer.experts)
    if routing == "skewed":
        popularity = (1 / torch.arange(1, layer.experts + 1))[torch.randperm(layer.experts)]
    # The top k of log-probabilities plus Gumbel noise: a draw without replacement.
    noise = -torch.empty(tokens, layer.experts).exponential_().log()
    expert_ids = (popularity.log() + noise).topk(layer.top_k, dim=-1).indices
    routing_weights = torch.rand(tokens, layer.top_k) + 0.1
    routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
    return torch.randn(tokens, layer.hidden).to(DTYPE), expert_ids, routing_weights.to(DTYPE)


def implementations(layer: Layer, weights: Weights) -> dict[str, Experts]:
    """What is compared, all of it on the same weights, coxmoe first."""

    def coxmoe(
        hidden_states: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        output: torch.Tensor = torch.ops.coxmoe.coalesced_experts(
            hidden_states, expert_ids, routing_weights, weights.gate_up, weights.down
        )
        return output

    def plain(
        hidden_states: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        return per_expert_linear(hidden_states, expert_ids, routing_weights, weights)

    return {
        COXMOE: coxmoe,
        "grouped_mm": transformers_experts(layer, weights, "grouped_mm"),
        "eager loop": transformers_experts(layer, weights, "eager"),
        "per-expert linear": plain,
    }


def transformers_experts(layer: Layer, weights: Weights, experts_implementation: str) -> Experts:
    """transformers' own module; those of the three layers' families compute the same."""
    config = transformers.MixtralConfig(
        num_local_experts=layer.experts,
        num_experts_per_tok=layer.top_k,
        hidden_size=layer.hidden,
        intermediate_size=layer.intermediate,
    )
    config._experts_implementation = experts_implementation
    with torch.device("meta"):
        module = MixtralExperts(config)
    module.gate_up_proj = torch.nn.Parameter(weights.gate_up, requires_grad=False)
    module.down_proj = torch.nn.Parameter(weights.down, requires_grad=False)
    experts: Experts = module.eval()
    return experts


def per_expert_linear(
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    weights: Weights,
) -> torch.Tensor:
    """The plainest good way: sort once, two linears per active expert, sum in float32."""
    top_k = expert_ids.shape[1]
    flat_ids, flat_weights = expert_ids.flatten(), routing_weights.flatten()
    slots = flat_ids.argsort(stable=True)
    output = torch.zeros(hidden_states.shape, dtype=torch.float32)
    end = 0
    for expert, count in enumerate(flat_ids.bincount().tolist()):
        if count == 0:
            continue
        begin, end = end, end + count
        group = slots[begin:end]
        tokens = group // top_k
        gate_up = weights.gate_up[expert].to(hidden_states.dtype)
        gate, up = functional.linear(hidden_states[tokens], gate_up).chunk(2, dim=-1)
        down = weights.down[expert].to(hidden_states.dtype)
        expert_output = functional.linear(functional.silu(gate) * up, down)
        output.index_add_(0, tokens, (expert_output * flat_weights[group, None]).float())
    return output.to(hidden_states.dtype)


def error_against_float32(layer: Layer, weights: Weights, experts: Experts) -> float:
    """Relative Frobenius error on 16 tokens against the same layer computed in float32."""
    hidden_states, expert_ids, routing_weights = random_inputs(layer, 16, "uniform")
    expected = per_expert_linear(
        hidden_states.float(), expert_ids, routing_weights.float(), weights
    )
    actual = experts(hidden_states, expert_ids, routing_weights).float()
    return float((actual - expected).norm() / expected.norm())


def roofline_seconds(layer: Layer, expert_ids: torch.Tensor, roofline: Roofline) -> float:
    """The least time for these tokens: active experts' weights read once, all products."""
    tokens, top_k = expert_ids.shape
    expert_elements = 3 * layer.hidden * layer.intermediate
    active_experts = len(set(expert_ids.flatten().tolist()))
    elements = active_experts * expert_elements + 2 * tokens * layer.hidden
    return roofline.seconds(2 * tokens * top_k * expert_elements, elements * DTYPE.itemsize)


def time_case(
    layer: Layer,
    tokens: int,
    routing: str,
    compared: dict[str, Experts],
    repeats: int,
    on_repeat: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Rows for one layer, number of tokens and routing: the roofline's, then each implementation's.

    `on_repeat` is called after each repeat.
    """
    warm_up = random_inputs(layer, tokens, routing)
    for experts in compared.values():
        experts(*warm_up)
    names = list(compared)
    limits: list[float] = []
    measured: dict[str, list[float]] = {name: [] for name in names}
    fractions: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        inputs = random_inputs(layer, tokens, routing)
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            # The probe reads more than any cache holds, so that no implementation finds its
            # weights in a cache because another has just read them.
            limit = roofline_seconds(layer, inputs[1], measure_roofline(DTYPE))
            begin = time.perf_counter()
            compared[name](*inputs)
            seconds = time.perf_counter() - begin
            limits.append(limit)
            measured[name].append(seconds)
            fractions[name].append(limit / seconds)
        on_repeat()

    def row(implementation: str, seconds: list[float], over_roofline: float) -> Row:
        milliseconds = statistics.median(seconds) * 1e3
        return Row(layer.name, tokens, routing, implementation, milliseconds, over_roofline)

    return [
        row(ROOFLINE, limits, 1.0),
        *(row(name, measured[name], statistics.median(fractions[name])) for name in names),
    ]


def table_of(layer: Layer, rows: Sequence[Row]) -> Table:
    """One line a case: the roofline, then per implementation its time and two ratios."""
    title = (
        f"{layer.name}: {layer.experts} experts, top {layer.top_k}, "
        f"{layer.hidden} x {layer.intermediate}, bfloat16"
    )
    caption = (
        "milliseconds · share of the roofline · in brackets: its time / coxmoe's (more than 1: "
        "coxmoe is faster)"
    )
    table = Table(title=title, caption=caption)
    table.add_column("tokens", justify="right")
    table.add_column("routing")
    names = list(dict.fromkeys(row.implementation for row in rows))
    for name in names:
        table.add_column(f"{name}, ms" if name == ROOFLINE else name, justify="right")
    cases: dict[tuple[int, str], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row.tokens, row.routing), {})[row.implementation] = row
    for (tokens, routing), by_name in cases.items():
        ours = by_name[COXMOE].milliseconds
        cells = []
        for name in names:
            cell = f"{by_name[name].milliseconds:.2f}"
            if name != ROOFLINE:
                cell += f" · {by_name[name].over_roofline:.0%}"
            if name not in (ROOFLINE, COXMOE):
                cell += f" ({by_name[name].milliseconds / ours:.2f}x)"
            cells.append(cell)
        table.add_row(str(tokens), routing, *cells)
    return table


@torch.inference_mode()
def measure(
    layers: Sequence[Layer],
    tokens: Sequence[int],
    routings: Sequence[str],
    repeats: int,
    console: Console,
) -> list[Row]:
    """Times every case, printing a table for each layer as it is done."""
    torch.manual_seed(0)
    rows: list[Row] = []
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        # Its thread would otherwise wake up in the middle of timings.
        auto_refresh=False,
    )
    with scheduled_first(), progress:
        task = progress.add_task("", total=len(layers) * len(tokens) * len(routings) * repeats)
        for layer in layers:
            progress.update(task, description=f"{layer.name}: making weights", refresh=True)
            weights = random_weights(layer)
            compared = implementations(layer, weights)
            error = error_against_float32(layer, weights, compared[COXMOE])
            layer_rows: list[Row] = []
            for token_count in tokens:
                for routing in routings:
                    description = f"{layer.name}: {token_count} tokens, {routing}"
                    progress.update(task, description=description, refresh=True)
                    layer_rows += time_case(
                        layer,
                        token_count,
                        routing,
                        compared,
                        repeats,
                        lambda: progress.update(task, advance=1, refresh=True),
                    )
            console.print(table_of(layer, layer_rows))
            console.print(f"coxmoe's relative error against float32: {error:.1e}\n")
            rows += layer_rows
    return rows


def _layer(name: str) -> Layer:
    if name in LAYERS:
        return LAYERS[name]
    close = difflib.get_close_matches(name.lower(), [known.lower() for known in LAYERS], n=1)
    nearest = [known for known in LAYERS if known.lower() in close]
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise argparse.ArgumentTypeError(f"no layer {name!r}; use one of {', '.join(LAYERS)}{hint}")


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more; use e.g. 8")
    return int(text)


def _token_counts(text: str) -> list[int]:
    try:
        return [_positive(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers of 1 or more; use e.g. 1,8,64"
        ) from None


def _json_path(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r}: there is no folder {str(path.parent)!r}; make it first"
        )
    return path


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; wrong values end the program before anything is measured."""
    parser = argparse.ArgumentParser(description="Time the routed experts of MoE layers.")
    parser.add_argument(
        "--layer",
        type=_layer,
        action="append",
        metavar="NAME",
        help=f"{', '.join(LAYERS)}; repeat it for more than one (default: all)",
    )
    parser.add_argument(
        "--tokens",
        type=_token_counts,
        default=[1, 8, 64, 512, 2048],
        metavar="LIST",
        help="numbers of tokens, with commas (default: 1,8,64,512,2048)",
    )
    parser.add_argument("--routing", choices=ROUTINGS, help="only this one (default: both)")
    parser.add_argument(
        "--repeats", type=_positive, default=5, metavar="N", help="timings per row (default: 5)"
    )
    parser.add_argument(
        "--json", type=_json_path, metavar="FILE", help="also write the rows to this file"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark as the command line says."""
    options = parse_arguments(arguments)
    console = Console()
    rows = measure(
        options.layer or list(LAYERS.values()),
        options.tokens,
        [options.routing] if options.routing else ROUTINGS,
        options.repeats,
        console,
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
        console.print(f"rows written to {options.json}")


if __name__ == "__main__":
    main()
