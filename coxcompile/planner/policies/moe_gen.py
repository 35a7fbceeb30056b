"""Policy moe-gen: module-based batching (MoE-Gen, arXiv 2503.09716)."""

import math
from collections.abc import Iterator
from dataclasses import replace

from coxcompile.hardware import HardwareSpec, Processor
from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.memory import STAGING
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Device, Plan, Stage, StagePlan
from coxcompile.planner.policies.search import STAGING_EXPERTS, micro_batches
from coxcompile.planner.policies.setting import STAGES, Pair, Setting
from coxcompile.planner.policies.splits import gpu_of, spread
from coxcompile.planner.workload import Workload

ATTENTION: dict[Stage, tuple[Device, ...]] = {"prefill": ("gpu",), "decode": ("gpu", "cpu")}
"""Where attention may run; MoE-Gen's own share of sequences on the CPU is 0 or 1 here."""


def moe_gen(
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> Plan:
    """Tokens pile up in host memory until each module has a batch of its own.

    Attention takes small micro-batches, the experts all tokens of the block, ``expert_rows`` of
    one a time at most. The whole KV cache lies in host memory, and all experts are fetched over
    the link: none is resident, as MoE-Gen has buffers for modules on their way and keeps none.
    VRAM goes first to the modules that are no routed experts, then to staging slots, up to a whole
    layer, then to the tokens of an expert at a time; there are always enough of those to be bound
    by products and not by reads, or all, where VRAM allows. Micro-batches, block and place of
    decode's attention are the fastest by the shared cost model, which takes the place of MoE-Gen's
    profile of the modules.

    Raises:
        ValueError: there is no GPU.
        DoesNotFitError: no block fits.
    """
    setting = Setting("moe-gen", model, hardware, workload, probabilities)
    gpu = gpu_of(setting.policy, hardware)
    enough_rows = product_bound_rows(model, gpu)
    pair = _fastest(setting, enough_rows) or _fastest(setting, 1)
    if pair is None:
        smallest = _template(model, 1, 1, 0.0, "gpu")
        raise setting.does_not_fit([(smallest, smallest)])
    decode = pair[1]
    reasons = [
        f"Blocks of {decode.block} of {workload.batch} sequences accumulate in host memory with "
        f"{setting.memory(decode, 'decode').host['KV cache'] / 1e9:.1f} GB of KV cache: the "
        "fastest of the blocks that fit, as predicted.",
        _attention_reason(setting, decode),
    ]
    for stage, plan in zip(STAGES, pair, strict=True):
        rows = "all tokens" if plan.expert_rows is None else f"{plan.expert_rows} tokens"
        reasons.append(
            f"In {stage} attention in micro-batches of {plan.micro_batch} sequences and an expert "
            f"on {rows} at a time, where {enough_rows} make it bound by products; all "
            f"{model.experts} experts of a layer cross the link into {plan.staging_experts} slots "
            f"of {model.expert_bytes / 1e6:.1f} MB, {plan.resident_share:.0%} of all other weights "
            "stay in VRAM."
        )
    return setting.answer(pair, reasons)


def _attention_reason(setting: Setting, decode: StagePlan) -> str:
    other: Device = "cpu" if decode.attention == "gpu" else "gpu"
    moved = replace(decode, attention=other)
    otherwise = (
        f"would take {setting.predict(moved, 'decode').step_seconds:.3g} s"
        if setting.fits(moved, "decode")
        else "does not fit"
    )
    return (
        f"Decode's attention on the {decode.attention.upper()}: a step of a block takes "
        f"{setting.predict(decode, 'decode').step_seconds:.3g} s, as predicted, and on the "
        f"{other.upper()} {otherwise}; prefill's on the GPU, as all modules of prefill."
    )


def product_bound_rows(model: ModelSpec, gpu: Processor) -> int:
    """Tokens of an expert from which its products take longer than reading it: P·b / (2·BW)."""
    operations_a_byte = gpu.flops_per_second / gpu.memory_bytes_per_second
    return math.ceil(operations_a_byte * model.element_bytes / 2)


def _fastest(setting: Setting, least_rows: int) -> Pair | None:
    return setting.fastest_pair(
        (
            _module_batches(setting, "prefill", block, least_rows),
            _module_batches(setting, "decode", block, least_rows),
        )
        for block in reversed(micro_batches(setting.workload.batch))
    )


def _template(
    model: ModelSpec, micro_batch: int, block: int, other_share: float, attention: Device
) -> StagePlan:
    return StagePlan(
        qkv="gpu",
        attention=attention,
        output="gpu",
        micro_batch=micro_batch,
        block=block,
        coalesced=True,
        experts=spread(model, 0),
        staging_experts=min(STAGING_EXPERTS, model.experts),
        resident_share=other_share,
        expert_rows=1,
    )


def _module_batches(
    setting: Setting, stage: Stage, block: int, least_rows: int
) -> Iterator[StagePlan]:
    """For each micro-batch and place of attention that fits: VRAM as :func:`moe_gen` fills it."""
    for attention in ATTENTION[stage]:
        for micro_batch in micro_batches(block):
            templates = (
                _template(setting.model, micro_batch, block, share, attention)
                for share in (1.0, 0.0)
            )
            base = next((plan for plan in templates if setting.fits(plan, stage)), None)
            filled = base and _filled(setting, stage, base, least_rows)
            if filled is None:
                break
            yield filled


def _filled(setting: Setting, stage: Stage, base: StagePlan, least_rows: int) -> StagePlan | None:
    """``base`` with more slots and rows; None if it leaves no room for ``least_rows`` of them."""
    model = setting.model
    row_bytes = (model.hidden + 3 * model.expert_dim) * model.element_bytes
    use = setting.memory(replace(base, expert_rows=None), stage)
    all_rows_bytes = use.vram["intermediates of experts"]
    least_bytes = min(all_rows_bytes, least_rows * row_bytes)
    fixed = use.vram_bytes - all_rows_bytes - use.vram[STAGING]
    room = gpu_of(setting.policy, setting.hardware).memory_bytes - fixed
    slots = min(model.experts, int((room - least_bytes) // model.expert_bytes))
    if slots < base.staging_experts:
        return None
    rows_bytes = room - slots * model.expert_bytes
    rows = None if rows_bytes >= all_rows_bytes else int(rows_bytes // row_bytes)
    return replace(base, staging_experts=slots, expert_rows=rows)
