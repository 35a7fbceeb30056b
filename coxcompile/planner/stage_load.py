"""How much one pass of one stage has to do: tokens, attended positions, steps."""

import math
from dataclasses import dataclass

from coxcompile.planner.plan import Stage, StagePlan
from coxcompile.planner.workload import Workload


@dataclass(frozen=True, kw_only=True)
class StageLoad:
    """One step of one block, and how often that happens.

    Attributes:
        tokens: tokens that pass through each layer.
        pairs: pairs of a query and an attended position (causal in prefill).
        cached_reads: cached positions that attention reads.
        sequences: sequences in the block.
        micro_batches: n = ⌈block / μ⌉.
        steps: steps of a block (1 in prefill).
        blocks: passes over the workload, B / block (a last, smaller block counts in proportion).
    """

    tokens: float
    pairs: float
    cached_reads: float
    sequences: int
    micro_batches: int
    steps: int
    blocks: float


def stage_load(workload: Workload, stage: Stage, plan: StagePlan) -> StageLoad:
    """The load of ``stage`` under ``plan``; decoding steps at the mean length of the cache."""
    share = plan.block / workload.batch
    if stage == "prefill":
        steps = 1
        tokens, pairs = workload.input_tokens * share, workload.causal_pairs * share
        cached_reads = tokens
    else:
        steps = max(workload.longest_output - 1, 0)
        tokens = workload.decoded_tokens * share / max(steps, 1)
        pairs = workload.decoded_pairs * share / max(steps, 1)
        cached_reads = pairs
    return StageLoad(
        tokens=tokens,
        pairs=pairs,
        cached_reads=cached_reads,
        sequences=plan.block,
        micro_batches=math.ceil(plan.block / plan.micro_batch),
        steps=steps,
        blocks=1 / share,
    )
