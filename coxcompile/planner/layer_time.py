"""Seconds of one layer: micro-batches pipelined through OP0-OP2, then the routed experts."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.expert_costs import ExpertCosts
from coxcompile.planner.expert_work import Numeric, expert_work
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.operations import (
    Resource,
    Work,
    home,
    layer_weights_to_fetch,
    micro_batch_chain,
    processor,
)
from coxcompile.planner.plan import StagePlan
from coxcompile.planner.stage_load import StageLoad
from coxcompile.planner.waves import flowing, pipelined

RESOURCES: tuple[Resource, ...] = ("gpu", "cpu", "host_to_device", "device_to_host")


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer: from start to end, and how long each resource works in it."""

    seconds: Numeric
    busy: dict[Resource, Numeric]


def dense_layer_time(
    plan: StagePlan, model: ModelSpec, hardware: HardwareSpec, load: StageLoad
) -> LayerTime:
    """A layer without routed experts: a micro-batch goes on to the next layer by itself.

    The weights of two layers are fetched while the layers with experts are computed, and count as
    work of the link there; those of further layers without experts only while these are computed.
    """
    chain = micro_batch_chain(plan, model, hardware, load, model.dense_dim)
    busy = _busy(chain, load.micro_batches)
    busy["host_to_device"] += _fetch_seconds(plan, model, hardware, model.dense_dim)
    if not plan.fetches_overlap:
        fetch = _fetch_seconds(plan, model, hardware, model.dense_dim)
        return LayerTime(flowing(chain, load.micro_batches, 1) + fetch, busy)
    if plan.coalesced and model.moe_layers:
        # Filling and draining the pipeline counts in the first layer with experts.
        dense = min(model.dense_layers, 3)
        chained = (dense + 1) * flowing(chain, load.micro_batches, dense + 1)
        chained = (chained - flowing(chain, load.micro_batches, 1)) / max(dense, 1)
    else:
        chained = flowing(chain, load.micro_batches, model.layers)
    late = max(busy["host_to_device"] - chained, 0.0)
    ahead = min(2 / max(model.dense_layers, 1), 1.0) if model.moe_layers else 0.0
    return LayerTime(chained + (1 - ahead) * late, busy)


def output_head_time(
    plan: StagePlan, model: ModelSpec, hardware: HardwareSpec, load: StageLoad
) -> LayerTime:
    """The output head, once a step, for the last token of each sequence."""
    device = home(plan, hardware)
    unit = processor(hardware, device)
    rows = float(load.sequences)
    flops = 2 * rows * model.vocabulary * model.hidden
    seconds = unit.gemm_seconds(flops, float(model.head_bytes), rows) + unit.launch_seconds
    busy: dict[Resource, Numeric] = dict.fromkeys(RESOURCES, 0.0)
    busy[device] = seconds
    return LayerTime(seconds, busy)


def moe_layer_time(
    plan: StagePlan,
    model: ModelSpec,
    hardware: HardwareSpec,
    load: StageLoad,
    costs: ExpertCosts,
    row: Any,
    resident: Any,
    cpu: Any,
) -> LayerTime:
    """A layer with routed experts, for one split or, with arrays, for many at once.

    Coalesced (paper §4.1): T = T(OP0-OP2 of all micro-batches) + max(T_gpu, T_link, T_cpu). The GPU
    computes the resident and the migrating experts; as many of these as there are staging slots
    have crossed the link by then, the others follow while the GPU computes. The CPU's experts wait
    for their tokens, and their results go back. Slots that are free are filled for the next layer
    at once, so T is no less than the link's whole work.

    Not coalesced (MoE-Lightning, FlexGen): the experts are part of each micro-batch's chain and
    read their weights each time; a micro-batch goes on to the next layer by itself, so that filling
    and draining the pipeline count once a step. The link's work overlaps with the layer before: the
    slots hold two layers' migrating experts. Where fetches do not overlap (FlexGen, whose authors'
    own cost model adds them to the computing), each layer is its fetch and then its pipeline.

    Args:
        costs: of the tokens that run together: the block's, or a micro-batch's if not coalesced.
        row: the layer's row in ``costs``; resident, cpu: the split (N_R, N_C), N_M is the rest.
    """
    chain = micro_batch_chain(plan, model, hardware, load, model.shared_dim)
    work = expert_work(plan, model, hardware, load, costs, row, resident, cpu)
    other_fetches = _fetch_seconds(plan, model, hardware, model.shared_dim)
    # Buffers are also filled while layers without experts and the output head leave the link idle,
    # and the other way round.
    dense = dense_layer_time(plan, model, hardware, load)
    idle = model.dense_layers * (dense.seconds - dense.busy["host_to_device"])
    idle = idle + output_head_time(plan, model, hardware, load).seconds
    migrating = np.maximum(model.experts - cpu - resident, 1)
    slots = np.maximum(plan.staging_experts / migrating, 1.0)
    buffered = slots * (work.fetch - work.fetch_unstaged) + other_fetches
    relief = np.minimum(
        np.minimum(idle, buffered) / max(model.moe_layers, 1), work.fetch + other_fetches
    )
    times = 1 if plan.coalesced else load.micro_batches
    busy = _busy(chain, load.micro_batches)
    busy["gpu"] = busy["gpu"] + times * work.gpu
    busy["cpu"] = busy["cpu"] + times * work.cpu
    busy["device_to_host"] = busy["device_to_host"] + times * work.there
    link = busy["host_to_device"] + other_fetches + work.fetch + times * work.back
    busy["host_to_device"] = link
    if not plan.fetches_overlap:
        chained = flowing(chain, load.micro_batches, 1, work)
        return LayerTime(chained + work.fetch + other_fetches, busy)
    if not plan.coalesced:
        chained = flowing(chain, load.micro_batches, model.layers, work)
        return LayerTime(np.maximum(chained, link - relief), busy)
    # With one slot the link waits while its expert is computed.
    waits = work.gpu_migrating if plan.staging_experts <= 1 else work.gpu_last
    experts_seconds = functools.reduce(
        np.maximum,
        [
            work.gpu,
            np.where(work.fetch_unstaged > 0, work.fetch_unstaged + waits + work.back, 0.0),
            np.where(work.cpu > 0, work.there + work.cpu + work.back, 0.0),
        ],
    )
    if plan.staging_experts <= 1:
        link = link + work.gpu_migrating
    phase = pipelined(chain, load.micro_batches)
    return LayerTime(np.maximum(phase + experts_seconds, link - relief), busy)


def _busy(chain: Sequence[Work], repetitions: int) -> dict[Resource, Numeric]:
    busy: dict[Resource, Numeric] = dict.fromkeys(RESOURCES, 0.0)
    for work in chain:
        busy[work.resource] += repetitions * work.seconds
    return busy


def _fetch_seconds(
    plan: StagePlan, model: ModelSpec, hardware: HardwareSpec, ffn_dim: int
) -> float:
    size = layer_weights_to_fetch(plan, model, ffn_dim)
    if size <= 0 or hardware.host_to_device is None:
        return 0.0
    return hardware.host_to_device.seconds(size)
