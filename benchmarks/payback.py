"""When a placement of experts has paid for its search: a prediction under a stated cost.

Each expert that is not resident and that a batch needs in a step is fetched once over the system's
link, nothing overlapping. A step is the prefill, which yields the first token, and one for each
further token. A batch's tokens are taken to choose independently, as a full pass says: of n tokens
one at least chooses an expert with probability 1 - (1 - p)^n.
"""

import math
from dataclasses import dataclass

from coxcompile import ActivationMap
from coxcompile.systems import system_named


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences run together, and their mean lengths."""

    sequences: int
    input_tokens: int
    output_tokens: int

    def misses(self, full: ActivationMap, placement: ActivationMap, resident: int) -> float:
        """Experts that are not resident and that the batch needs, over all layers and steps."""
        chosen = full.probabilities().clip(0, 1)
        for row, ids in zip(chosen, placement.hottest(resident), strict=True):
            row[ids] = 0
        prefill, decode = self.sequences * self.input_tokens, self.sequences
        unneeded = (1 - chosen) ** prefill + (self.output_tokens - 1) * (1 - chosen) ** decode
        return float((self.output_tokens - unneeded).sum())


@dataclass(frozen=True, kw_only=True)
class Payback:
    """Of one placement against another; ``batches`` are None where it saves nothing."""

    system: str
    batch: Batch
    expert_bytes: int
    seconds_per_miss: float
    misses_avoided_per_batch: float
    seconds_saved_per_batch: float
    batches: int | None
    batches_with_compiling: int | None


def pay_back(
    misses_before: float,
    misses_after: float,
    *,
    batch: Batch,
    seconds: float,
    compiling_seconds: float,
    expert_bytes: int,
    system: str,
) -> Payback:
    """A search of ``seconds`` changes a batch's misses from the first number to the second.

    Raises:
        ValueError: the system is unknown or has no GPU, so that nothing crosses a link.
    """
    link = system_named(system).host_to_device
    if link is None:
        raise ValueError(f"system {system} has no GPU, so no expert crosses a link; name another")
    avoided = misses_before - misses_after
    saved = avoided * link.seconds(expert_bytes)

    def batches(cost: float) -> int | None:
        return math.ceil(cost / saved) if saved > 0 else None

    return Payback(
        system=system,
        batch=batch,
        expert_bytes=expert_bytes,
        seconds_per_miss=link.seconds(expert_bytes),
        misses_avoided_per_batch=avoided,
        seconds_saved_per_batch=saved,
        batches=batches(seconds),
        batches_with_compiling=batches(seconds + compiling_seconds),
    )
