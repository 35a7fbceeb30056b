"""Timing work of a GPU: by its own clock, with cold caches, in rounds that everything shares."""

import statistics
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

from coxcompile.measurement.roofline import Roofline

GEMM_SIZE = 8192
REPEATS = 7
FLUSHED_BYTES = 2**30
"""More than any level 2 cache has; filling it also lets the host queue what is timed meanwhile."""

Key = TypeVar("Key", bound=Hashable)
Timed = Callable[[int], object]
"""Takes the number of the round, by which it picks its inputs."""
SecondsOf = Callable[[Callable[[], object]], float]


class DeviceClock:
    """Seconds of calls on the current CUDA device, none of whose data is in a cache before."""

    def __init__(self, device: torch.device) -> None:
        self._flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device)

    def seconds(self, call: Callable[[], object]) -> float:
        """Between the events around what ``call`` queues; the caches are flushed before."""
        timed_event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        start, end = (timed_event(enable_timing=True) for _ in range(2))
        # Twice: a fill of 1 GiB ends before the host has queued half a dozen kernels.
        self._flushed.fill_(1)
        self._flushed.fill_(2)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def roofline(self, dtype: torch.dtype = torch.bfloat16) -> Roofline:
        """Best of several large products of ``dtype``, and of several reads of 1 GiB."""
        device = self._flushed.device
        left, right = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=device).to(dtype) for _ in range(2))
        numbers = torch.rand(FLUSHED_BYTES // 4, device=device)
        products = min(self.seconds(lambda: left @ right) for _ in range(REPEATS))
        reads = min(self.seconds(numbers.amax) for _ in range(REPEATS))
        return Roofline(
            gemm_flops_per_second=2 * GEMM_SIZE**3 / products,
            read_bytes_per_second=FLUSHED_BYTES / reads,
        )


def interleaved_medians(
    timed: Mapping[Key, Timed],
    rounds: int,
    seconds_of: SecondsOf,
    *,
    drop_beyond: float = float("inf"),
    advance: Callable[[], None] = lambda: None,
) -> dict[Key, float]:
    """Each one's median seconds; all take turns, in another order each round.

    Args:
        timed: what is timed, by what it is called in the result.
        rounds: timings of each, after one that does not count.
        seconds_of: times one call.
        drop_beyond: after three rounds only those stay that are at most so many times as slow as
            the fastest; the medians of others are of these rounds.
        advance: called after each round.
    """
    readings: dict[Key, list[float]] = {key: [] for key in timed}
    racing = list(timed)
    for number in range(rounds + 1):
        turn = number % max(len(racing), 1)
        for key in racing[turn:] + racing[:turn]:
            seconds = seconds_of(lambda: timed[key](number))  # noqa: B023 (called at once)
            if number:
                readings[key].append(seconds)
        if number == 3:
            medians = {key: statistics.median(readings[key]) for key in racing}
            best = min(medians.values(), default=0.0)
            racing = [key for key in racing if medians[key] <= drop_beyond * best]
        advance()
    return {key: statistics.median(values) for key, values in readings.items()}
