"""The expert operators as plain PyTorch calls (oneDNN linears): no compiler needed."""

from collections.abc import Callable, Sequence

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
    check_ids(gating.op, expert_ids, len(gate_up))
    weights = (gate_up, down, gate_up_bias, down_bias)
    output_of = _output_of_stacked(weights, transposed, gating)
    sums = _sums_of_choices(hidden_states, expert_ids, routing_weights, len(gate_up), output_of)
    return sums.to(hidden_states.dtype)


def coalesced_separate_experts(
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    gate: Sequence[torch.Tensor],
    up: Sequence[torch.Tensor],
    down: Sequence[torch.Tensor],
    gate_bias: Sequence[torch.Tensor] | None = None,
    up_bias: Sequence[torch.Tensor] | None = None,
    down_bias: Sequence[torch.Tensor] | None = None,
    *,
    activation: str = "silu",
    alpha: float = 1.0,
    limit: float | None = None,
) -> torch.Tensor:
    """``coxmoe::coalesced_experts.separate``, as in :mod:`coxcompile.ops`.

    Raises:
        ValueError: ``activation`` is unknown, or a list does not hold a tensor for each expert.
        IndexError: an expert id is out of range.
    """
    gating = Gating("coalesced_experts", activation, "concatenated", alpha, limit)
    if not gate:
        raise ValueError(f"{gating.op}: gate holds no tensors, but must hold one for each expert")
    check_ids(gating.op, expert_ids, len(gate))
    biases = (gate_bias, up_bias, down_bias)
    lists = zip(
        ("up", "down", "gate_bias", "up_bias", "down_bias"), (up, down, *biases), strict=True
    )
    for name, tensors in lists:
        if tensors is not None and len(tensors) != len(gate):
            raise ValueError(
                f"{gating.op}: {name} holds {len(tensors)} tensors, but must hold one for each of "
                f"the {len(gate)} experts that gate has"
            )

    def output_of(tokens: torch.Tensor, expert: int) -> torch.Tensor:
        of_gate, of_up, of_down = (None if bias is None else bias[expert] for bias in biases)
        halves = (
            functional.linear(tokens, gate[expert], of_gate),
            functional.linear(tokens, up[expert], of_up),
        )
        return functional.linear(gating(torch.cat(halves, dim=-1)), down[expert], of_down)

    sums = _sums_of_choices(hidden_states, expert_ids, routing_weights, len(gate), output_of)
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
    check_ids(gating.op, expert_ids, len(expert_slots))
    if len(outside := expert_slots[expert_slots >= len(gate_up)]):
        raise ValueError(
            f"{gating.op}: expert_slots holds slot {int(outside[0])}, but gate_up has "
            f"{len(gate_up)} slots; slots must lie below that, or be negative for experts elsewhere"
        )
    slots = expert_slots[expert_ids]
    weights = (gate_up, down, gate_up_bias, down_bias)
    output_of = _output_of_stacked(weights, transposed, gating)
    sums = _sums_of_choices(hidden_states, slots, routing_weights, len(gate_up), output_of)
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


def check_ids(op: str, expert_ids: torch.Tensor, experts: int) -> None:
    """Raise IndexError unless every expert id lies in [0, ``experts``)."""
    if len(outside := expert_ids[(expert_ids < 0) | (expert_ids >= experts)]):
        raise IndexError(
            f"{op}: expert_ids holds {int(outside[0])}, but there are {experts} experts; ids must "
            f"lie in [0, {experts})"
        )


def _output_of_stacked(
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    transposed: bool,
    gating: Gating,
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    gate_up, down, gate_up_bias, down_bias = weights

    def output_of(tokens: torch.Tensor, slot: int) -> torch.Tensor:
        projected = _linear(tokens, gate_up, gate_up_bias, slot, transposed)
        return _linear(gating(projected), down, down_bias, slot, transposed)

    return output_of


def _sums_of_choices(
    hidden_states: torch.Tensor,
    slots: torch.Tensor,
    routing_weights: torch.Tensor,
    slot_count: int,
    output_of: Callable[[torch.Tensor, int], torch.Tensor],
) -> torch.Tensor:
    """Each token's weighted sum over its choices [T, H] float32; those of negative slot give 0.

    ``output_of`` gives the output of a slot's expert for some tokens.
    """
    top_k, hidden = slots.shape[1], hidden_states.shape[1]
    flat_slots = slots.reshape(-1)
    # Negative slots sort first and go into a group of their own.
    choices = flat_slots.argsort(stable=True)
    counts = torch.bincount(flat_slots.clamp(min=-1) + 1, minlength=slot_count + 1).tolist()
    weighted = torch.zeros(flat_slots.numel(), hidden, dtype=torch.float32)
    flat_weights = routing_weights.reshape(-1, 1).float()
    for slot, own in enumerate(choices.split(counts)[1:]):
        if own.numel():
            output = output_of(hidden_states[own // top_k], slot)
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
