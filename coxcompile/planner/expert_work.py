"""What the routed experts of one layer give each resource to do, for one split or for many."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from coxcompile.hardware import HardwareSpec, Link
from coxcompile.planner.expert_costs import ExpertCosts
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.operations import home
from coxcompile.planner.plan import StagePlan
from coxcompile.planner.stage_load import StageLoad

# A float, or an array over the candidates of a search.
Numeric = Any


@dataclass(frozen=True)
class ExpertWork:
    """Seconds, of the tokens that run together: the block's, or a micro-batch's if not coalesced.

    Attributes:
        gpu: computing the resident and the GPU's part of the migrating experts, with launches.
        gpu_migrating: of these, the migrating ones' without launches.
        gpu_last: of these, the coldest one's.
        cpu: computing the CPU's experts and its part of the migrating ones, with launches.
        there, back: moving the CPU's tokens from the GPU, and their results to it.
        fetch: moving the migrating experts to the GPU.
        fetch_unstaged: of these, what has to wait for a staging slot until the experts run; none
            if not coalesced, where the slots hold two layers' experts.
    """

    gpu: Numeric
    gpu_migrating: Numeric
    gpu_last: Numeric
    cpu: Numeric
    there: Numeric
    back: Numeric
    fetch: Numeric
    fetch_unstaged: Numeric


def expert_work(
    plan: StagePlan,
    model: ModelSpec,
    hardware: HardwareSpec,
    load: StageLoad,
    costs: ExpertCosts,
    row: Any,
    resident: Any,
    cpu: Any,
) -> ExpertWork:
    """The work of one layer; paper §4.1, OP3.

    Coalesced, a migrating expert is fetched if a token needs it, so as often as expected; else a
    layer ahead, whether needed or not.
    ``row`` is the layer's in ``costs``; ``resident`` and ``cpu`` are N_R and N_C, N_M is the rest.
    """
    experts, staging = model.experts, plan.staging_experts
    on_gpu = experts - cpu
    kept = 1 - plan.cpu_rows_share
    gpu_migrating = kept * (costs.gpu_seconds[row, on_gpu] - costs.gpu_seconds[row, resident])
    gpu_seconds = costs.gpu_seconds[row, resident] + gpu_migrating
    coldest = np.maximum(on_gpu, 1)
    gpu_last = costs.gpu_seconds[row, coldest] - costs.gpu_seconds[row, coldest - 1]
    cpu_seconds = costs.cpu_seconds[row, experts] - costs.cpu_seconds[row, on_gpu]
    if plan.cpu_rows_share:
        split = costs.cpu_seconds[row, on_gpu] - costs.cpu_seconds[row, resident]
        cpu_seconds = cpu_seconds + plan.cpu_rows_share * split
    if hardware.gpu is not None:
        # Gate/up and down are one grouped kernel each, whatever the number of experts.
        gpu_seconds = gpu_seconds + np.where(on_gpu > 0, 2 * hardware.gpu.launch_seconds, 0.0)
    cpu_launches = np.where(cpu_seconds > 0, 2 * hardware.cpu.launch_seconds, 0.0)

    one_fetch = fetch_one(plan, model, hardware)
    if plan.coalesced:
        staged = np.minimum(resident + staging, on_gpu)
        fetched = costs.fetched_experts[row, on_gpu] - costs.fetched_experts[row, resident]
        unstaged = costs.fetched_experts[row, on_gpu] - costs.fetched_experts[row, staged]
    else:
        fetched, unstaged = on_gpu - resident, 0.0

    tokens = load.tokens if plan.coalesced else load.tokens / load.micro_batches
    first_of_cpu = resident if plan.cpu_rows_share else on_gpu
    misses = 1 - costs.token_misses[row, first_of_cpu]
    moved = tokens * misses * (model.hidden * model.element_bytes)
    is_home_gpu = home(plan, hardware) == "gpu"
    return ExpertWork(
        gpu=gpu_seconds,
        gpu_migrating=gpu_migrating,
        gpu_last=np.where(on_gpu > 0, gpu_last, 0.0),
        cpu=cpu_seconds + cpu_launches,
        there=_link_seconds(hardware.device_to_host, moved) if is_home_gpu else 0.0,
        back=_link_seconds(hardware.host_to_device, moved) if is_home_gpu else 0.0,
        fetch=fetched * one_fetch,
        fetch_unstaged=unstaged * one_fetch,
    )


def fetch_one(plan: StagePlan, model: ModelSpec, hardware: HardwareSpec) -> float:
    """Seconds in which one migrating expert, without the CPU's rows, crosses the link."""
    link = hardware.host_to_device
    return (1 - plan.cpu_rows_share) * link.seconds(model.expert_bytes) if link else 0.0


def _link_seconds(link: Link | None, size: Numeric) -> Numeric:
    assert link is not None
    return np.where(size > 0, link.latency_seconds + size / link.bytes_per_second, 0.0)
