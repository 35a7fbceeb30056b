"""What tests compare with: a float64 reference of the op, an error measure, routings."""

import copy
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

RoutingKind = Literal["uniform", "skewed", "one_expert", "ragged"]
AnyModule = TypeVar("AnyModule", bound=nn.Module)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda gate: functional.gelu(gate, approximate="tanh"),
    "relu": functional.relu,
}
"""The activations of the form ``act(gate) * up``."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The relative Frobenius error ‖actual − expected‖ / ‖expected‖, computed in float64.

    Any equal shapes and any dtypes; 0 where both are all zeros, infinity where only ``expected``
    is; NaN if either holds one.
    """
    if actual.shape != expected.shape:
        raise ValueError(
            f"shapes differ: actual {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        )
    difference = torch.linalg.vector_norm(actual.double() - expected.double()).item()
    if difference == 0:
        return 0.0
    size = torch.linalg.vector_norm(expected.double()).item()
    return difference / size if size != 0 else float("inf")


def median_token_error(actual: Tensor, expected: Tensor) -> float:
    """Median over tokens (all dimensions but the last) of each token's relative error.

    In bfloat16 a near-tie in a router flips a token's expert now and then, in eager as in compiled
    code, and one flip would decide a mean.
    """
    difference = (actual.double() - expected.double()).norm(dim=-1)
    return float((difference / expected.double().norm(dim=-1)).median())


def reference_experts(
    hidden_states: Tensor,
    expert_ids: Tensor,
    routing_weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    activation: str = "silu",
    gate_layout: str = "concatenated",
    transposed: bool = False,
    alpha: float = 1.0,
    limit: float | None = None,
) -> Tensor:
    """``torch.ops.coxmoe.coalesced_experts`` in float64, one expert after another.

    Takes the op's own arguments and upcasts them; returns [T, H] in float64. An expert that occurs
    twice for a token counts twice.
    """
    result = torch.zeros(hidden_states.shape, dtype=torch.float64)
    for expert in torch.unique(expert_ids).tolist():
        tokens, choices = (expert_ids == expert).nonzero(as_tuple=True)
        gate_up_weight, down_weight = gate_up[expert].double(), down[expert].double()
        if transposed:
            gate_up_weight, down_weight = gate_up_weight.T, down_weight.T
        projected = hidden_states[tokens].double() @ gate_up_weight.T
        if gate_up_bias is not None:
            projected += gate_up_bias[expert].double()
        gate, up = _gate_and_up(projected, gate_layout)
        output = _gated(gate, up, activation, alpha, limit) @ down_weight.T
        if down_bias is not None:
            output += down_bias[expert].double()
        result.index_add_(0, tokens, routing_weights[tokens, choices, None].double() * output)
    return result


def _gate_and_up(projected: Tensor, gate_layout: str) -> tuple[Tensor, Tensor]:
    if gate_layout == "interleaved":
        return projected[:, 0::2], projected[:, 1::2]
    if gate_layout == "concatenated":
        gate, up = projected.chunk(2, dim=1)
        return gate, up
    raise ValueError(f"gate_layout {gate_layout!r} is neither 'concatenated' nor 'interleaved'")


def _gated(gate: Tensor, up: Tensor, activation: str, alpha: float, limit: float | None) -> Tensor:
    if activation != "swigluoai":
        return ACTIVATIONS[activation](gate) * up
    if limit is not None:
        gate = gate.clamp(max=limit)
        up = up.clamp(min=-limit, max=limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)


def random_routing(
    tokens: int, experts: int, top_k: int, kind: RoutingKind, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw a routing: (expert_ids [tokens, top_k] int64, routing_weights [tokens, top_k] float32).

    A token's experts are distinct and in no order; its weights are positive and sum to 1. Kinds:

    - "uniform": every expert is as likely as any other.
    - "skewed": experts are drawn by Zipf's law (the r-th most popular with weight 1/r), which
      expert is how popular being random.
    - "one_expert": all tokens choose the same ``top_k`` experts.
    - "ragged": one expert gets every token, one gets exactly one token, at least one gets none.
      Takes at least ``top_k + 2`` experts and 2 tokens. With ``top_k`` 1, every token but one.
    """
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k is {top_k}; it must be between 1 and the {experts} experts")
    generator = torch.Generator().manual_seed(seed)
    by_popularity = torch.randperm(experts, generator=generator)
    if kind == "one_expert":
        expert_ids = by_popularity[:top_k].repeat(tokens, 1)
    elif kind == "ragged":
        expert_ids = _ragged_expert_ids(tokens, by_popularity, top_k, generator)
    else:
        likelihood = torch.ones(experts)
        if kind == "skewed":
            likelihood[by_popularity] = 1 / torch.arange(1, experts + 1)
        expert_ids = torch.empty(0, top_k, dtype=torch.int64)
        if tokens > 0:
            expert_ids = likelihood.repeat(tokens, 1).multinomial(top_k, generator=generator)
    order = torch.rand(tokens, top_k, generator=generator).argsort(dim=1)
    routing_weights = torch.randn(tokens, top_k, generator=generator).softmax(dim=1)
    return expert_ids.gather(1, order), routing_weights


def _ragged_expert_ids(
    tokens: int, experts: Tensor, top_k: int, generator: torch.Generator
) -> Tensor:
    if len(experts) < top_k + 2 or tokens < 2:
        raise ValueError(
            f"a ragged routing of {tokens} tokens over {len(experts)} experts with top_k {top_k} "
            f"is impossible; it takes at least 2 tokens and top_k + 2 experts"
        )
    of_every_token, of_one_token, others = experts[0], experts[1], experts[2:]
    # The later half of the others gets no token, as far as top_k leaves the choice.
    of_some_tokens = others[: max(top_k - 1, len(others) // 2)]
    expert_ids = of_every_token.repeat(tokens, top_k)
    for token in range(tokens):
        drawn = torch.randperm(len(of_some_tokens), generator=generator)[: top_k - 1]
        expert_ids[token, 1:] = of_some_tokens[drawn]
    expert_ids[tokens // 2, -1] = of_one_token
    return expert_ids


def float32_copy(model: AnyModule) -> AnyModule:
    """A copy of ``model`` with all floating-point parameters and buffers in float32.

    The same weights, exactly: a reference for what the model computes in a narrower dtype. Takes as
    much memory again as float32 weights do.
    """
    duplicate = copy.deepcopy(model).float()
    if hasattr(duplicate, "config"):
        duplicate.config.dtype = torch.float32
    return duplicate
