"""What is timed in every environment: coxmoe's op, and ways that PyTorch and transformers have."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from experts_layers import DTYPE, Inputs, Layer, Weights
from torch.nn import functional
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

import coxcompile.ops  # noqa: F401  (registers the op)

COXMOE = "coxmoe"

Experts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden_states [T, H], expert_ids [T, top_k], routing_weights [T, top_k]) -> [T, H]."""


@dataclass(frozen=True)
class Implementation:
    """One way to run a layer's experts, and the dtypes in which it takes the routing."""

    experts: Experts
    expert_id_dtype: torch.dtype = torch.int64
    routing_weight_dtype: torch.dtype = DTYPE

    def converted(self, inputs: Inputs) -> Inputs:
        """The same inputs in its dtypes; a router would make them so, and this is not timed."""
        hidden_states, expert_ids, routing_weights = inputs
        return (
            hidden_states,
            expert_ids.to(self.expert_id_dtype),
            routing_weights.to(self.routing_weight_dtype),
        )


def own_implementation(weights: Weights) -> Implementation:
    """coxmoe's op, called as compiled graphs call it."""

    def experts(
        hidden_states: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        output: torch.Tensor = torch.ops.coxmoe.coalesced_experts.default(
            hidden_states, expert_ids, routing_weights, weights.gate_up, weights.down
        )
        return output

    return Implementation(experts)


def default_baseline(layer: Layer, weights: Weights) -> dict[str, Implementation]:
    """What transformers runs unless told otherwise."""
    return {"grouped_mm": transformers_experts(layer, weights, "grouped_mm")}


def slow_baselines(layer: Layer, weights: Weights) -> dict[str, Implementation]:
    """Loops over the experts."""

    def experts(
        hidden_states: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        return per_expert_linear(hidden_states, expert_ids, routing_weights, weights)

    return {
        "eager loop": transformers_experts(layer, weights, "eager"),
        "per-expert linear": Implementation(experts),
    }


def transformers_experts(
    layer: Layer, weights: Weights, experts_implementation: str
) -> Implementation:
    """transformers' own module; those of the three layers' families compute the same."""
    config = transformers.MixtralConfig(
        num_local_experts=layer.experts,
        num_experts_per_tok=layer.top_k,
        hidden_size=layer.hidden,
        intermediate_size=layer.intermediate,
    )
    config._experts_implementation = experts_implementation
    with torch.device("meta"):
        module = MixtralExperts(config)
    module.gate_up_proj = torch.nn.Parameter(weights.gate_up, requires_grad=False)
    module.down_proj = torch.nn.Parameter(weights.down, requires_grad=False)
    return Implementation(module.eval())


def per_expert_linear(
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    weights: Weights,
) -> torch.Tensor:
    """The plainest good way: sort once, two linears per active expert, sum in float32."""
    top_k = expert_ids.shape[1]
    flat_ids, flat_weights = expert_ids.flatten(), routing_weights.flatten()
    slots = flat_ids.argsort(stable=True)
    output = torch.zeros(hidden_states.shape, dtype=torch.float32)
    end = 0
    for expert, count in enumerate(flat_ids.bincount().tolist()):
        if count == 0:
            continue
        begin, end = end, end + count
        group = slots[begin:end]
        tokens = group // top_k
        gate_up = weights.gate_up[expert].to(hidden_states.dtype)
        gate, up = functional.linear(hidden_states[tokens], gate_up).chunk(2, dim=-1)
        down = weights.down[expert].to(hidden_states.dtype)
        expert_output = functional.linear(functional.silu(gate) * up, down)
        output.index_add_(0, tokens, (expert_output * flat_weights[group, None]).float())
    return output.to(hidden_states.dtype)
