"""Policy gpu-only: every operation on the GPU, weights and cache in VRAM as far as they fit."""

from collections.abc import Iterator
from dataclasses import replace

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Plan, Stage, StagePlan
from coxcompile.planner.policies.search import STAGING_EXPERTS, micro_batches
from coxcompile.planner.policies.setting import STAGES, Setting
from coxcompile.planner.policies.splits import fill, gpu_of, spread
from coxcompile.planner.workload import Workload

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Candidate shares of the cache, and of the weights that are no routed experts, in VRAM."""


def gpu_only(
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> Plan:
    """No computation on the CPU: what VRAM does not hold is fetched over the link as it is needed.

    The experts are coalesced over a block. Of all blocks, shares of the KV cache in VRAM,
    micro-batches and numbers of staging slots the shared cost model chooses; the weights that are
    no routed experts, which every layer needs, come first to VRAM, then resident experts.

    Raises:
        ValueError: there is no GPU.
        DoesNotFitError: no block fits.
    """
    setting = Setting("gpu-only", model, hardware, workload, probabilities)
    gpu = gpu_of(setting.policy, hardware)
    pair = setting.fastest_pair(
        (
            _filled(setting, "prefill", block, cache_share),
            _filled(setting, "decode", block, cache_share),
        )
        for block in reversed(micro_batches(workload.batch))
        for cache_share in SHARES
    )
    if pair is None:
        smallest = _template(model, 1, 1, 0.0, 0.0)
        raise setting.does_not_fit([(smallest, smallest)])
    decode_plan = pair[1]
    reasons = [
        f"All operations on the GPU, as the policy demands; {gpu.memory_bytes / 1e9:.1f} GB of "
        f"VRAM for {model.total_bytes / 1e9:.1f} GB of weights.",
        f"Blocks of {decode_plan.block} of {workload.batch} sequences with "
        f"{decode_plan.kv_gpu_share:.0%} of their KV cache in VRAM: the fastest combination, as "
        "predicted; the rest of the cache is fetched from host memory.",
    ]
    for stage, plan in zip(STAGES, pair, strict=True):
        resident = sum(split.resident for split in plan.experts)
        reasons.append(
            f"In {stage} {resident} of {model.moe_layers * model.experts} experts stay in VRAM "
            f"({resident * model.expert_bytes / 1e9:.1f} GB) and {plan.resident_share:.0%} of all "
            f"other weights: what micro-batches of {plan.micro_batch} sequences leave free; the "
            f"others cross the link into {plan.staging_experts} slots."
        )
    return setting.answer(pair, reasons)


def _template(
    model: ModelSpec, micro_batch: int, block: int, cache_share: float, other_share: float
) -> StagePlan:
    """All experts migrating, through two slots."""
    return StagePlan(
        qkv="gpu",
        attention="gpu",
        output="gpu",
        micro_batch=micro_batch,
        block=block,
        coalesced=True,
        experts=spread(model, 0),
        staging_experts=min(STAGING_EXPERTS, model.experts),
        resident_share=other_share,
        kv_gpu_share=cache_share,
    )


def _filled(setting: Setting, stage: Stage, block: int, cache_share: float) -> Iterator[StagePlan]:
    """For each micro-batch that fits: VRAM filled, with few or with many staging slots.

    A byte of other weights saves at least what a byte of an expert does, for every layer needs it.
    """
    model = setting.model
    for micro_batch in reversed(micro_batches(block)):
        templates = (_template(model, micro_batch, block, cache_share, share) for share in SHARES)
        base = next((plan for plan in templates if setting.fits(plan, stage)), None)
        if base is None:
            continue
        unstaged = replace(base, staging_experts=0)
        room = int(setting.spare_vram(unstaged, stage) // model.expert_bytes)
        for most_slots in sorted({base.staging_experts, model.experts}):
            resident, slots = fill(model, room, most_slots)
            yield replace(base, experts=spread(model, resident), staging_experts=slots)
