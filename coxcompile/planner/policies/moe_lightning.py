"""Policy moe-lightning: CGOPipe's schedule, chosen by a hierarchical roofline (ASPLOS 2025)."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Device, Plan, StagePlan
from coxcompile.planner.policies.first_fit import Candidate, first_fitting
from coxcompile.planner.policies.moe_lightning_roofline import layer_seconds, resident_shares
from coxcompile.planner.policies.search import micro_batches
from coxcompile.planner.policies.setting import Pair, Setting
from coxcompile.planner.policies.splits import gpu_of, layer_ahead_slots, spread
from coxcompile.planner.workload import Workload

VRAM_SHARE, HOST_SHARE = 0.86, 0.8
"""What its optimiser plans to fill of the memories."""


def moe_lightning(
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> Plan:
    """Attention of decode on the CPU, everything else on the GPU, the experts a micro-batch a time.

    Searches micro-batch μ, block and the share of expert weights in VRAM r_w for the least time a
    sequence of one decoding step of one layer by its hierarchical roofline,
    T = max(weights over the link, GPU, CPU). Prefill, which that objective leaves out, runs on the
    GPU with the same numbers.

    Raises:
        ValueError: there is no GPU.
        DoesNotFitError: not even one sequence a time fits.
    """
    setting = Setting("moe-lightning", model, hardware, workload, probabilities)
    gpu_of(setting.policy, hardware)
    candidates = list(_candidates(setting, VRAM_SHARE, HOST_SHARE))
    candidates = candidates or list(_candidates(setting, 1.0, 1.0))
    smallest = Candidate(float("inf"), 1, 1, 0, partial(_stages, model, 1, 1))
    pair = first_fitting(setting, candidates, smallest)[1]
    return setting.answer(pair, _reasons(setting, pair[1]))


def _reasons(setting: Setting, decode: StagePlan) -> list[str]:
    model, workload, link = setting.model, setting.workload, setting.hardware.host_to_device
    assert link is not None, "HardwareSpec has links wherever it has a GPU"
    resident, everything = sum(split.resident for split in decode.experts), _all_experts(model)
    link_ms, gpu_ms, cpu_ms = (
        1e3 * float(seconds[0])
        for seconds in layer_seconds(
            *(setting, decode.micro_batch),
            *(np.array([float(decode.block)]), np.array([resident / everything])),
        )
    )
    cache_bytes = setting.memory(decode, "decode").host["KV cache"]
    cache_ms = 1e3 * cache_bytes / model.layers / link.bytes_per_second
    slowest = max(link_ms, gpu_ms, cpu_ms)
    return [
        f"Decode's attention on the CPU beside its cache ({cache_bytes / 1e9:.1f} GB in host "
        f"memory), as the policy has it: {cpu_ms:.3g} ms a layer and block by its roofline, where "
        f"the link alone would take {cache_ms:.3g} ms for the full cache; projections and prefill "
        "on the GPU.",
        f"Experts on the GPU in {-(-decode.block // decode.micro_batch)} micro-batches of "
        f"{decode.micro_batch} sequences: {gpu_ms:.3g} ms a layer and block, for each micro-batch "
        "reads every expert from VRAM.",
        f"{resident} of {everything} experts resident "
        f"({resident * model.expert_bytes / 1e9:.1f} GB of VRAM, a share of "
        f"{resident / max(everything, 1):.3f}): the others take the link {link_ms:.3g} ms a layer "
        f"and block, through {decode.staging_experts} slots that hold a layer and the next.",
        f"Blocks of {decode.block} of {workload.batch} sequences: with them the slowest of link, "
        f"GPU and CPU takes {1e3 * slowest / decode.block:.3g} µs a layer and sequence; no "
        "candidate that its roofline ranks before this one fits.",
    ]


def _candidates(setting: Setting, vram_share: float, host_share: float) -> Iterator[Candidate]:
    """All numbers of micro-batches at once, for each μ."""
    model, batch = setting.model, setting.workload.batch
    for micro_batch in micro_batches(batch):
        counts = np.arange(1, -(-batch // micro_batch) + 1)
        blocks = np.minimum(micro_batch * counts, batch).astype(np.float64)
        shares = resident_shares(setting, micro_batch, blocks, vram_share, host_share)
        cost = np.maximum.reduce(
            np.broadcast_arrays(*layer_seconds(setting, micro_batch, blocks, shares))
        )
        for index in np.flatnonzero(shares >= 0):
            block = int(blocks[index])
            yield Candidate(
                cost=float(cost[index] / block),
                micro_batch=micro_batch,
                block=block,
                most_resident=int(shares[index] * _all_experts(model)),
                stages=partial(_stages, model, micro_batch, block),
            )


def _stages(model: ModelSpec, micro_batch: int, block: int, resident: int) -> Pair:
    def plan(attention: Device) -> StagePlan:
        return StagePlan(
            qkv="gpu",
            attention=attention,
            output="gpu",
            micro_batch=micro_batch,
            block=block,
            coalesced=False,
            experts=spread(model, resident),
            staging_experts=layer_ahead_slots(model, resident),
        )

    return plan("gpu"), plan("cpu")


def _all_experts(model: ModelSpec) -> int:
    return model.moe_layers * model.experts
