"""From a baseline's own ranking of candidates to the first that the shared accounting admits."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coxcompile.planner.policies.setting import STAGES, Pair, Setting
from coxcompile.planner.policies.splits import gpu_of


@dataclass(frozen=True)
class Candidate:
    """One point of a baseline's search, with as many resident experts as its own rule allows.

    Attributes:
        cost: what the baseline's optimiser minimises, seconds a sequence.
        most_resident: experts resident by the baseline's own rule, all layers together.
        stages: both stages' plans with so many experts resident in place of that.
    """

    cost: float
    micro_batch: int
    block: int
    most_resident: int
    stages: Callable[[int], Pair]


def memory_budgets(setting: Setting, vram_share: float, host_share: float) -> tuple[float, float]:
    """Bytes of (VRAM, host memory) to plan with: the baseline's share, less what is set aside."""
    hardware = setting.hardware
    vram = gpu_of(setting.policy, hardware).memory_bytes
    host = hardware.cpu.memory_bytes
    return (
        min(vram_share * vram, vram - hardware.gpu_reserve_bytes),
        min(host_share * host, host - hardware.host_reserve_bytes),
    )


def first_fitting(
    setting: Setting, candidates: Iterable[Candidate], smallest: Candidate
) -> tuple[Candidate, Pair]:
    """The candidate of least cost that fits, of equals the largest block, and its plans.

    One that overshoots the shared accounting gives up resident experts. If that does not help it,
    neither does it help a larger micro-batch or block; ``smallest`` is tried last.

    Raises:
        DoesNotFitError: none fits.
    """
    failed: list[Candidate] = []
    ranking = sorted(candidates, key=lambda c: (float(f"{c.cost:.9g}"), -c.block, -c.micro_batch))
    for candidate in [*ranking, smallest]:
        if any(
            candidate.micro_batch >= other.micro_batch and candidate.block >= other.block
            for other in failed
        ):
            continue
        pair = _shrunk(setting, candidate)
        if pair is not None:
            return candidate, pair
        failed.append(candidate)
    raise setting.does_not_fit([candidate.stages(0) for candidate in failed])


def _shrunk(setting: Setting, candidate: Candidate) -> Pair | None:
    """With as many resident experts as fit; None if none at all do not fit either."""
    resident = candidate.most_resident
    while True:
        pair = candidate.stages(resident)
        if all(setting.fits(plan, stage) for plan, stage in zip(pair, STAGES, strict=True)):
            return pair
        if resident == 0:
            return None
        lacking = max(
            -setting.spare_vram(plan, stage) for plan, stage in zip(pair, STAGES, strict=True)
        )
        if lacking <= 0:
            return None
        resident = max(resident - math.ceil(lacking / setting.model.expert_bytes), 0)
