"""Micro-batches through the resources in a fixed order, wave by wave: when they are through."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from coxcompile.planner.expert_work import ExpertWork, Numeric
from coxcompile.planner.operations import Resource, Work

SCHEDULED = 64
"""Micro-batches of one layer that are put in their places one by one."""

FLOWING = 12
"""The same, of layers through which micro-batches flow."""

EXPERT_WAVES = 3
"""Waves of a micro-batch's experts at most: its tokens to the CPU, the experts, results back."""


def visits(chain: Sequence[Work]) -> list[tuple[Resource, float]]:
    """What a chain does on one resource after another: seconds on each until it changes."""
    stops: list[tuple[Resource, float]] = []
    for work in chain:
        before = stops.pop()[1] if stops and stops[-1][0] == work.resource else 0.0
        stops.append((work.resource, before + work.seconds))
    return stops


def waves_of_layer(stops: int, repetitions: int) -> int:
    """Waves from a layer's start to the next one's, where micro-batches go on by themselves."""
    return max(repetitions, stops + EXPERT_WAVES)


def pipelined(chain: Sequence[Work], repetitions: int) -> float:
    """Seconds of ``repetitions`` equal chains that start together.

    Each resource serves micro-batch k's v-th visit in wave k + v, the earlier micro-batch first,
    whatever is ready first: the order of a graph's nodes, as the runtime issues them. At most as
    many micro-batches as a chain has visits are on their way. Repetitions beyond ``SCHEDULED`` take
    as long as the last half of these.
    """
    return _pipelined(tuple(visits(chain)), repetitions)


@functools.lru_cache(maxsize=1024)
def _pipelined(stops: tuple[tuple[Resource, float], ...], repetitions: int) -> float:
    scheduled = min(repetitions, SCHEDULED)
    through = _schedule(stops, scheduled, 1, None)[0]
    half = SCHEDULED // 2
    each = (through[-1] - through[half - 1]) / half if repetitions > SCHEDULED else 0.0
    return float(through[-1] + (repetitions - scheduled) * each)


def flowing(
    chain: Sequence[Work], repetitions: int, layers: int, work: ExpertWork | None = None
) -> Numeric:
    """Seconds of one of ``layers`` equal layers that micro-batches go through by themselves.

    ``work`` is what each micro-batch's experts do after the chain. A few micro-batches are put in
    their places through up to four layers. Of many, the slowest resource is always at work, but
    for the time before the first reaches it and after the last leaves it, once a step.
    """
    stops = visits(chain)
    if repetitions <= FLOWING:
        scheduled = min(layers, 4)
        ends = _schedule(stops, repetitions, scheduled, work)
        through = [functools.reduce(np.maximum, layer) for layer in ends]
        each = (through[-1] - through[1]) / 2 if layers > scheduled else 0.0
        return (through[-1] + (layers - scheduled) * each) / layers
    alone: Numeric = sum(seconds for _, seconds in stops)
    used: dict[str, Numeric] = {}
    for resource, seconds in [*stops, *_expert_stops(work)]:
        used[resource] = used.get(resource, 0.0) + seconds
    if work is not None:
        alone = alone + np.maximum(work.gpu, work.there + work.cpu + work.back)
    busiest = functools.reduce(np.maximum, used.values())
    return np.maximum(alone, repetitions * busiest + (alone - busiest) / layers)


def _expert_stops(work: ExpertWork | None) -> list[tuple[Resource, Numeric]]:
    if work is None:
        return []
    return [
        ("gpu", work.gpu),
        ("device_to_host", work.there),
        ("cpu", work.cpu),
        ("host_to_device", work.back),
    ]


def _schedule(
    stops: Sequence[tuple[Resource, float]],
    repetitions: int,
    layers: int,
    work: ExpertWork | None,
) -> list[list[Any]]:
    """[layers][repetitions]: when each micro-batch has left each layer."""
    resources = [*stops, *_expert_stops(work)]
    last = stops[-1][0]
    offsets = [*range(len(stops))]
    if work is not None:
        there = len(stops) - (last == "device_to_host")
        offsets += [len(stops) - (last == "gpu"), there, there + 1, there + 2]
    larger = max if work is None else np.maximum
    free: dict[str, Any] = dict.fromkeys([resource for resource, _ in resources], 0.0)
    on_gpu: list[Any] = [0.0] * repetitions
    elsewhere: list[Any] = [0.0] * repetitions
    chained: list[list[Any]] = [[0.0] * repetitions for _ in range(layers)]
    through: list[list[Any]] = [[0.0] * repetitions for _ in range(layers)]
    for layer, index, stop in _order(tuple(offsets), len(stops), repetitions, layers):
        resource, seconds = resources[stop]
        at = on_gpu if stop == len(stops) else elsewhere
        if stop == 0:
            at[index] = through[layer - 1][index] if layer else 0.0
            if index >= len(stops):
                at[index] = larger(at[index], chained[layer][index - len(stops)])
        end = larger(at[index], free[resource]) + seconds
        if stop >= len(stops):
            # Experts that there are none of keep nothing waiting.
            at[index] = np.where(seconds > 0, end, at[index])
            free[resource] = np.where(seconds > 0, end, free[resource])
        else:
            at[index] = free[resource] = end
        if stop == len(stops) - 1:
            on_gpu[index] = chained[layer][index] = at[index]
        through[layer][index] = larger(elsewhere[index], on_gpu[index])
    return through


@functools.lru_cache(maxsize=256)
def _order(
    offsets: tuple[int, ...], stops: int, repetitions: int, layers: int
) -> tuple[tuple[int, int, int], ...]:
    """(layer, micro-batch, stop), wave by wave, earlier micro-batches first."""
    between = waves_of_layer(stops, repetitions)
    entries = sorted(
        (layer * between + index + offset, index, stop, layer)
        for layer in range(layers)
        for index in range(repetitions)
        for stop, offset in enumerate(offsets)
    )
    return tuple((layer, index, stop) for _, index, stop, layer in entries)
