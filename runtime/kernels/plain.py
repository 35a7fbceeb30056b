"""``coxmoe::coalesced_experts`` as plain PyTorch calls (oneDNN linears): no compiler needed."""

import torch
from torch.nn import functional

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "swigluoai")


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
    """Shapes, dtypes and meaning as in :mod:`coxcompile.ops`.

    Raises:
        ValueError: ``activation`` or ``gate_layout`` is unknown.
        IndexError: an expert id is out of range.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"coalesced_experts: activation is {activation!r}, but must be one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    if gate_layout not in ("concatenated", "interleaved"):
        raise ValueError(
            f"coalesced_experts: gate_layout is {gate_layout!r}, but must be 'concatenated' or "
            "'interleaved'"
        )
    experts, top_k = gate_up.shape[0], expert_ids.shape[1]
    flat_ids = expert_ids.reshape(-1)
    if len(outside := flat_ids[(flat_ids < 0) | (flat_ids >= experts)]):
        raise IndexError(
            f"coalesced_experts: expert_ids holds {int(outside[0])}, but there are {experts} "
            f"experts; ids must lie in [0, {experts})"
        )
    slots = flat_ids.argsort(stable=True)
    counts = torch.bincount(flat_ids, minlength=experts).tolist()
    weighted = torch.empty(flat_ids.numel(), hidden_states.shape[1], dtype=torch.float32)
    flat_weights = routing_weights.reshape(-1, 1).float()
    for expert, expert_slots in enumerate(slots.split(counts)):
        if not expert_slots.numel():
            continue
        tokens = hidden_states[expert_slots // top_k]
        projected = _linear(tokens, gate_up, gate_up_bias, expert, transposed).float()
        if gate_layout == "interleaved":
            gate, up = projected[:, ::2], projected[:, 1::2]
        else:
            gate, up = projected.chunk(2, dim=-1)
        activated = _activate(gate, up, activation, alpha, limit).to(hidden_states.dtype)
        output = _linear(activated, down, down_bias, expert, transposed).float()
        weighted[expert_slots] = output * flat_weights[expert_slots]
    return weighted.view(-1, top_k, hidden_states.shape[1]).sum(1).to(hidden_states.dtype)


def _linear(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    expert: int,
    transposed: bool,
) -> torch.Tensor:
    matrix = weight[expert].t() if transposed else weight[expert]
    return functional.linear(tokens, matrix, None if bias is None else bias[expert])


def _activate(
    gate: torch.Tensor, up: torch.Tensor, activation: str, alpha: float, limit: float | None
) -> torch.Tensor:
    if activation == "silu":
        return functional.silu(gate) * up
    if activation == "gelu":
        return functional.gelu(gate) * up
    if activation == "gelu_tanh":
        return functional.gelu(gate, approximate="tanh") * up
    if activation == "relu":
        return functional.relu(gate) * up
    bound = float("inf") if limit is None else limit
    gate, up = gate.clamp(max=bound), up.clamp(-bound, bound)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)
