"""Policy flexgen: blocks of micro-batches, split over memories by a linear program (ICML 2023)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Device, Plan, StagePlan
from coxcompile.planner.policies.first_fit import Candidate, first_fitting
from coxcompile.planner.policies.flexgen_costs import block_costs, run_of_micro_batch
from coxcompile.planner.policies.flexgen_shares import Shares, solve
from coxcompile.planner.policies.search import micro_batches
from coxcompile.planner.policies.setting import Pair, Setting
from coxcompile.planner.policies.splits import gpu_of, layer_ahead_slots, spread
from coxcompile.planner.workload import Workload

MEMORY_SHARE = 0.8
"""What its optimiser plans to fill of each memory."""


def flexgen(
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> Plan:
    """The zig-zag schedule: a layer's weights are fetched once for a block of micro-batches.

    For each micro-batch (gbs) and number of them in a block (nb) a linear program finds the shares
    of weights, cache and hidden states in each memory (:mod:`flexgen_shares`); the least T / bls
    wins. Attention of decode runs where the cache lies, everything else on the GPU, the experts a
    micro-batch at a time.

    Raises:
        ValueError: there is no GPU.
        DoesNotFitError: not even one sequence a time fits.
    """
    setting = Setting("flexgen", model, hardware, workload, probabilities)
    gpu_of(setting.policy, hardware)
    candidates = list(_search(setting, MEMORY_SHARE)) or list(_search(setting, 1.0))
    smallest = Candidate(float("inf"), 1, 1, 0, partial(_stages, setting, 1, 1, 0.0, 0.0))
    chosen, pair = first_fitting(setting, candidates, smallest)
    decode = pair[1]
    everything = model.moe_layers * model.experts
    resident = sum(split.resident for split in decode.experts)
    use = setting.memory(decode, "decode")
    cost = (
        f"the linear program's {chosen.cost:.3g} s a sequence is the least of all that fit"
        if math.isfinite(chosen.cost)
        else "the linear program has no shares for more than the smallest, which fits"
    )
    cache_bytes = use.vram["KV cache"] + use.host["KV cache"]
    return setting.answer(
        pair,
        [
            f"Blocks of {decode.block} of {workload.batch} sequences in "
            f"{-(-decode.block // decode.micro_batch)} micro-batches of {decode.micro_batch}, so "
            f"that a layer's weights are fetched once for all of them: {cost}.",
            f"{decode.resident_share:.1%} of all weights stay in VRAM ({resident} of {everything} "
            f"experts, {resident * model.expert_bytes / 1e9:.1f} GB), {decode.disk_share:.1%} lie "
            f"on disk; the others cross the link a layer ahead, through {decode.staging_experts} "
            "slots that hold a layer and the next.",
            f"The KV cache ({cache_bytes / 1e9:.1f} GB) lies in "
            f"{'VRAM' if decode.kv_gpu_share else 'host memory'}, and decode's attention runs "
            f"beside it on the {decode.attention.upper()}; projections, experts and prefill run on "
            "the GPU.",
        ],
    )


def _search(setting: Setting, memory_share: float) -> Iterator[Candidate]:
    """All gbs, each with its numbers of micro-batches."""
    for micro_batch in micro_batches(setting.workload.batch):
        yield from _blocks(setting, micro_batch, memory_share)


def _blocks(setting: Setting, micro_batch: int, memory_share: float) -> Iterator[Candidate]:
    """nb from 1 to the largest feasible, until throughput falls."""
    batch = setting.workload.batch
    run = run_of_micro_batch(setting, micro_batch)

    def shares(count: int) -> Shares | None:
        block = min(micro_batch * count, batch)
        return solve(block_costs(setting, run, block, memory_share))

    largest = _largest_feasible(shares, -(-batch // micro_batch))
    least = float("inf")
    for count in micro_batches(largest) if largest else []:
        block = min(micro_batch * count, batch)
        found = shares(count)
        if found is None or found.seconds / block > least:
            break
        least = found.seconds / block
        yield _candidate(setting, micro_batch, block, found)


def _largest_feasible(shares: Callable[[int], Shares | None], most: int) -> int:
    """By bisection over the number of micro-batches; 0: not even one."""
    feasible, infeasible = 0, most + 1
    while infeasible - feasible > 1:
        middle = most if feasible == 0 and infeasible > most else (feasible + infeasible) // 2
        if shares(middle):
            feasible = middle
        else:
            infeasible = middle
    return feasible


def _candidate(setting: Setting, micro_batch: int, block: int, found: Shares) -> Candidate:
    model, values = setting.model, found.values
    cache_share = float(round(values["cache_gpu"]))
    disk_share = values["weights_disk"]
    return Candidate(
        cost=found.seconds / block,
        micro_batch=micro_batch,
        block=block,
        most_resident=int(values["weights_gpu"] * model.moe_layers * model.experts + 1e-9),
        stages=partial(_stages, setting, micro_batch, block, cache_share, disk_share),
    )


def _stages(
    setting: Setting,
    micro_batch: int,
    block: int,
    cache_share: float,
    disk_share: float,
    resident: int,
) -> Pair:
    """Both stages' plans; more goes to disk than the program has it if host memory demands it."""
    model = setting.model

    def plan(attention: Device) -> StagePlan:
        return StagePlan(
            qkv="gpu",
            attention=attention,
            output="gpu",
            micro_batch=micro_batch,
            block=block,
            coalesced=False,
            fetches_overlap=False,
            experts=spread(model, resident),
            staging_experts=layer_ahead_slots(model, resident),
            resident_share=resident / max(model.moe_layers * model.experts, 1),
            kv_gpu_share=cache_share,
        )

    prefill, decode = plan("gpu"), plan("gpu" if cache_share else "cpu")
    if setting.hardware.disk_bytes:
        lacking = (
            max(
                setting.memory(prefill, "prefill").host_bytes,
                setting.memory(decode, "decode").host_bytes,
            )
            - setting.hardware.cpu.memory_bytes
        )
        disk_share = min(max(disk_share, lacking / model.total_bytes * (1 + 1e-9)), 1.0)
    return replace(prefill, disk_share=disk_share), replace(decode, disk_share=disk_share)
