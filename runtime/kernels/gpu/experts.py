"""The experts of a layer on a GPU: Triton kernels, queued without waiting for the device."""

import functools

import torch

from coxcompile.runtime.kernels.gating import Gating
from coxcompile.runtime.kernels.gpu.configurations import ExpertConfiguration, load_table, look_up
from coxcompile.runtime.kernels.gpu.device import Device, current_device
from coxcompile.runtime.kernels.gpu.launches import combine_, down_, gate_up_
from coxcompile.runtime.kernels.gpu.routing import route
from coxcompile.runtime.kernels.gpu.weights import ExpertWeights
from coxcompile.runtime.kernels.plain import check_output


def run_experts_(
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    weights: ExpertWeights,
    gating: Gating,
    configuration: ExpertConfiguration,
    device: Device,
    *,
    add: bool,
) -> None:
    """Write the experts' weighted sums to ``output``, or add them to it.

    What the activation gives and each choice's contribution are rounded to hidden_states' dtype;
    sums are in float32, each in an order that no other token or program has influence on, so that
    the same inputs give the same bits.

    Args:
        output: [T, H], contiguous; float32 if ``add``, else any floating point.
        hidden_states: [T, H] float32, bfloat16 or float16.
        expert_ids: [T, top_k] int64 or int32. Ids out of range are experts that are not here.
        routing_weights: [T, top_k], any floating point.
        weights: of the E experts.
        gating: what lies between the projections.
        configuration: which tiles.
        device: that the kernels run on.
        add: add to the rows of tokens that chose an expert that is here, and leave others alone.
    """
    if not expert_ids.numel() or not weights.experts:
        if not add:
            output.zero_()
        return
    if hidden_states.stride(1) != 1:
        hidden_states = hidden_states.contiguous()
    expert_ids, routing_weights = expert_ids.contiguous(), routing_weights.contiguous()
    choices, top_k = expert_ids.numel(), expert_ids.shape[1]
    routing = route(expert_ids, weights.addresses[0], configuration.block_tokens)
    activated = hidden_states.new_empty(choices, weights.down.inputs)
    gate_up_(activated, hidden_states, weights, routing, gating, top_k, configuration, device)
    contributions = hidden_states.new_empty(choices, weights.down.outputs)
    down_(contributions, activated, routing_weights, weights, routing, configuration, device)
    combine_(output, contributions, expert_ids, weights, add=add)


def experts_subset_(
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    expert_slots: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    *,
    activation: str = "silu",
    gate_layout: str = "concatenated",
    transposed: bool = False,
    alpha: float = 1.0,
    limit: float | None = None,
) -> None:
    """``coxmoe::experts_subset_``; shapes, dtypes and meaning as in :mod:`coxcompile.ops`.

    Expert ids and slots are not checked, which would take waiting for them. Ids out of range are
    nobody's; a slot that there is not is undefined behaviour.

    Raises:
        ValueError: ``activation`` or ``gate_layout`` is unknown, ``output`` has another shape or
            dtype, or weights are not contiguous.
        LookupError: there is no configuration for this device.
    """
    gating = Gating("experts_subset_", activation, gate_layout, alpha, limit)
    check_output(gating.op, output, hidden_states)
    if not len(gate_up):
        return
    weights = ExpertWeights.from_stacked(
        gate_up,
        down,
        gate_up_bias,
        down_bias,
        expert_slots=expert_slots,
        transposed=transposed,
    )
    _run(output, hidden_states, expert_ids, routing_weights, weights, gating, add=True)


def coalesced_experts(
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    *,
    activation: str = "silu",
    gate_layout: str = "concatenated",
    transposed: bool = False,
    alpha: float = 1.0,
    limit: float | None = None,
) -> torch.Tensor:
    """``coxmoe::coalesced_experts``; shapes, dtypes and meaning as in :mod:`coxcompile.ops`.

    Raises:
        ValueError: ``activation`` or ``gate_layout`` is unknown, or weights are not contiguous.
        LookupError: there is no configuration for this device.
    """
    gating = Gating("coalesced_experts", activation, gate_layout, alpha, limit)
    output = hidden_states.new_empty(hidden_states.shape)
    weights = ExpertWeights.from_stacked(
        gate_up, down, gate_up_bias, down_bias, transposed=transposed
    )
    _run(output, hidden_states, expert_ids, routing_weights, weights, gating, add=False)
    return output


def _run(
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    weights: ExpertWeights,
    gating: Gating,
    *,
    add: bool,
) -> None:
    device = current_device()
    configuration = _configuration(
        device.names,
        weights.down.dtype,
        expert_ids.numel(),
        len(weights.owners[0]),
        weights.experts,
        weights.down.inputs,
        weights.down.outputs,
    )
    run_experts_(
        output,
        hidden_states,
        expert_ids,
        routing_weights,
        weights,
        gating,
        configuration,
        device,
        add=add,
    )


@functools.lru_cache(maxsize=4096)
def _configuration(
    devices: tuple[str, ...],
    dtype: torch.dtype,
    choices: int,
    here: int,
    experts: int,
    intermediate: int,
    hidden: int,
) -> ExpertConfiguration:
    # Cached: a step of decoding takes hardly longer than looking through the table.
    return look_up(
        load_table(),
        devices,
        str(dtype).removeprefix("torch."),
        choices / max(here, 1),
        experts=experts,
        intermediate=intermediate,
        hidden=hidden,
    )
