"""``coxmoe tune``: which tiles are fastest for a layer's experts, timed on the GPU at hand."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.gpu_analysis.products import PRODUCTS
from coxcompile.measurement.device_timing import SecondsOf, Timed, interleaved_medians
from coxcompile.measurement.likely_tiles import current_target, likely_tiles, objection
from coxcompile.measurement.product_bench import ProductBench, Tiles
from coxcompile.measurement.random_experts import ExpertForm, RandomExperts
from coxcompile.measurement.random_tokens import popularity, random_tokens
from coxcompile.runtime.kernels.gpu.configurations import ExpertConfiguration, Row

DRAWS = 3
"""Sets of tokens that timings take in turn."""
DROP_BEYOND = 1.3
"""Times the fastest's seconds: tiles that take longer are given up early."""
ERROR_BOUNDS = {"float16": 2e-3, "float32": 1e-5}
"""Of a projection against float64, results rounded to the tokens' type; bfloat16's is 1e-2."""


@dataclass(frozen=True)
class Tuned:
    """A row for the table, and how it was found.

    Attributes:
        row: the fastest.
        seconds: of both projections: medians, added.
        timed: how many tiles of projections were.
        dropped: those that were not, and why.
    """

    row: Row
    seconds: float
    timed: int
    dropped: dict[Tiles, str]


def tune(
    layer: ExpertLayer,
    weights: str,
    tokens_per_expert: Sequence[int],
    *,
    device: torch.device,
    device_name: str,
    seconds_of: SecondsOf,
    candidates: int = 12,
    rounds: int = 15,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Tuned]:
    """Time both projections with tiles that are likely to be fast, and choose: a row for each.

    Args:
        layer: whose experts are timed: random ones of its shape, all of them in the GPU's memory.
        weights: what they are stored as, as the table says it.
        tokens_per_expert: on average; routing is uniform.
        device: where Triton launches.
        device_name: for the rows.
        seconds_of: times a call there.
        candidates: so many of each projection and number of tokens in a tile, at most.
        rounds: timings of each, of which the median counts.
        progress: told what is being done.

    Raises:
        LookupError: no known target is like this device, or none of the tiles works.
        torch.OutOfMemoryError: the experts do not fit.
    """
    target, form = current_target(), ExpertForm(weights=weights)
    experts = RandomExperts(form, layer.experts, layer.hidden, layer.intermediate, device)
    uniform = popularity("uniform", layer.experts, layer.top_k, device)
    results = []
    for average in tokens_per_expert:
        tokens = max(1, round(average * layer.experts / layer.top_k))
        sizes = (tokens, layer.hidden, layer.top_k, form.dtype)
        draws = [random_tokens(*sizes, uniform) for _ in range(DRAWS)]
        bench = ProductBench(experts, draws, form.dtype)
        dropped: dict[Tiles, str] = {}
        timed: dict[Tiles, Timed] = {}
        likely = likely_tiles(target, layer, weights, tokens, candidates)
        for number, tiles in enumerate(likely, start=1):
            progress(f"{average} tokens an expert: compiling {number} of {len(likely)}")
            reason = objection(bench, tiles, ERROR_BOUNDS.get(weights, 1e-2))
            if reason is None:
                timed[tiles] = _timed(bench, tiles)
            else:
                dropped[tiles] = reason
        progress(f"{average} tokens an expert: timing {len(timed)}")
        medians = _medians(timed, rounds, seconds_of)
        seconds, configuration = fastest(medians, dropped)
        row = _row(layer, weights, average, device_name, configuration)
        results.append(Tuned(row, seconds, len(timed), dropped))
    return results


def fastest(
    medians: Mapping[Tiles, float], dropped: Mapping[Tiles, str]
) -> tuple[float, ExpertConfiguration]:
    """The least seconds of two projections with the same ``block_tokens``, and their tiles.

    Raises:
        LookupError: no ``block_tokens`` has both; the message has an example of what was dropped.
    """
    choices = []
    for block_tokens in sorted({tiles.block_tokens for tiles in medians}):
        best = []
        for name in PRODUCTS:
            mine = [t for t in medians if (t.product, t.block_tokens) == (name, block_tokens)]
            best += [min(mine, key=medians.__getitem__)] if mine else []
        if len(best) == len(PRODUCTS):
            gate_up, down = best
            configuration = ExpertConfiguration(
                block_tokens=block_tokens,
                gate_up=gate_up.configuration,
                down=down.configuration,
            )
            choices.append((medians[gate_up] + medians[down], configuration))
    if not choices:
        example = next(iter(dropped.items()), ("none", "there are none"))
        raise LookupError(f"no tiles work for both projections; {example[0]}: {example[1]}")
    return min(choices, key=lambda choice: choice[0])


def merged(existing: Iterable[Row], new: Sequence[Row]) -> list[Row]:
    """The rows of a table with ``new`` ones, which replace those for the same."""
    replaced = {_key(row) for row in new}
    return [*(row for row in existing if _key(row) not in replaced), *new]


def _key(row: Row) -> tuple[object, ...]:
    shape = (row.experts, row.intermediate, row.hidden)
    return row.device, row.weights, row.tokens_per_expert, shape


def _timed(bench: ProductBench, tiles: Tiles) -> Timed:
    return lambda number: bench.run(tiles, number)


def _medians(
    timed: Mapping[Tiles, Timed], rounds: int, seconds_of: SecondsOf
) -> dict[Tiles, float]:
    """Apart for each projection, as only tiles of the same compete."""
    medians: dict[Tiles, float] = {}
    for name in PRODUCTS:
        mine = {tiles: call for tiles, call in timed.items() if tiles.product == name}
        medians |= interleaved_medians(mine, rounds, seconds_of, drop_beyond=DROP_BEYOND)
    return medians


def _row(
    layer: ExpertLayer,
    weights: str,
    tokens_per_expert: int,
    device_name: str,
    configuration: ExpertConfiguration,
) -> Row:
    return Row(
        device=device_name,
        weights=weights,
        tokens_per_expert=tokens_per_expert,
        configuration=configuration,
        source=f"tuned on {device_name}",
        experts=layer.experts,
        intermediate=layer.intermediate,
        hidden=layer.hidden,
    )
