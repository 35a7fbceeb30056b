"""The expert operators as plain PyTorch calls (oneDNN linears): no compiler needed."""

import torch
from torch.nn import functional

from coxcompile.runtime.kernels.gating import Gating


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
        ValueError: ``activation`` or ``gate_layout`` is unknown.
        IndexError: an expert id is out of range.
    """
    gating = Gating("coalesced_experts", activation, gate_layout, alpha, limit)
    _check_ids(gating.op, expert_ids, len(gate_up))
    weights = (gate_up, down, gate_up_bias, down_bias)
    sums = _sums_of_choices(hidden_states, expert_ids, routing_weights, weights, transposed, gating)
    return sums.to(hidden_states.dtype)


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

    Raises:
        ValueError: ``activation`` or ``gate_layout`` is unknown, ``output`` has another shape or
            dtype, or a slot is not in the stacked weights.
        IndexError: an expert id is out of range.
    """
    gating = Gating("experts_subset_", activation, gate_layout, alpha, limit)
    check_output(gating.op, output, hidden_states)
    _check_ids(gating.op, expert_ids, len(expert_slots))
    if len(outside := expert_slots[expert_slots >= len(gate_up)]):
        raise ValueError(
            f"{gating.op}: expert_slots holds slot {int(outside[0])}, but gate_up has "
            f"{len(gate_up)} slots; slots must lie below that, or be negative for experts elsewhere"
        )
    slots = expert_slots[expert_ids]
    weights = (gate_up, down, gate_up_bias, down_bias)
    sums = _sums_of_choices(hidden_states, slots, routing_weights, weights, transposed, gating)
    chosen = (slots >= 0).any(dim=1)
    output[chosen] += sums[chosen]


def check_output(op: str, output: torch.Tensor, hidden_states: torch.Tensor) -> None:
    """Raise ValueError unless ``output`` can take shares of the experts of ``hidden_states``."""
    if output.dtype != torch.float32 or output.shape != hidden_states.shape:
        raise ValueError(
            f"{op}: output is {output.dtype} of shape {tuple(output.shape)}, but must be float32 "
            f"of hidden_states' shape {tuple(hidden_states.shape)}"
        )
    if not output.is_contiguous():
        raise ValueError(
            f"{op}: output has strides {output.stride()}, but must be contiguous; allocate it with "
            "torch.zeros"
        )


def _check_ids(op: str, expert_ids: torch.Tensor, experts: int) -> None:
    if len(outside := expert_ids[(expert_ids < 0) | (expert_ids >= experts)]):
        raise IndexError(
            f"{op}: expert_ids holds {int(outside[0])}, but there are {experts} experts; ids must "
            f"lie in [0, {experts})"
        )


def _sums_of_choices(
    hidden_states: torch.Tensor,
    slots: torch.Tensor,
    routing_weights: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    transposed: bool,
    gating: Gating,
) -> torch.Tensor:
    """Each token's weighted sum over its choices [T, H] float32; those of negative slot give 0."""
    gate_up, down, gate_up_bias, down_bias = weights
    top_k, hidden = slots.shape[1], hidden_states.shape[1]
    flat_slots = slots.reshape(-1)
    # Negative slots sort first and go into a group of their own.
    choices = flat_slots.argsort(stable=True)
    counts = torch.bincount(flat_slots.clamp(min=-1) + 1, minlength=len(gate_up) + 1).tolist()
    weighted = torch.zeros(flat_slots.numel(), hidden, dtype=torch.float32)
    flat_weights = routing_weights.reshape(-1, 1).float()
    for slot, own in enumerate(choices.split(counts)[1:]):
        if not own.numel():
            continue
        projected = _linear(hidden_states[own // top_k], gate_up, gate_up_bias, slot, transposed)
        output = _linear(gating(projected), down, down_bias, slot, transposed)
        weighted[own] = output.float() * flat_weights[own]
    return weighted.view(-1, top_k, hidden).sum(1)


def _linear(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    slot: int,
    transposed: bool,
) -> torch.Tensor:
    matrix = weight[slot].t() if transposed else weight[slot]
    return functional.linear(tokens, matrix, None if bias is None else bias[slot])
