"""The MoE layers whose routed experts are timed, with random weights and inputs for them."""

from dataclasses import dataclass

import torch

DTYPE = torch.bfloat16
ROUTINGS = ("uniform", "skewed")
"""Those that are timed unless the command line names one."""
EVEN = "even"
"""The routing that gives all experts the same number of tokens, or one more to some: for looking at
one number of tokens an expert."""

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Hidden states [T, H], expert ids [T, top_k] and routing weights [T, top_k]."""


@dataclass(frozen=True)
class Layer:
    """The dimensions of a layer's routed experts."""

    name: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    tokens: tuple[int, ...]
    """Numbers of tokens that are timed where the command line names none."""


LAYERS = {
    layer.name: layer
    for layer in (
        Layer("Qwen3-30B-A3B", 128, 8, 2048, 768, tokens=(1, 8, 64, 512, 2048)),
        Layer("Mixtral-8x7B", 8, 2, 4096, 14336, tokens=(1, 16, 256)),
        Layer("DeepSeek-V2-Lite", 64, 6, 2048, 1408, tokens=(1, 64, 1024)),
    )
}


@dataclass(frozen=True)
class Weights:
    """gate_up [E, 2I, H] and down [E, H, I]."""

    gate_up: torch.Tensor
    down: torch.Tensor


def random_weights(layer: Layer) -> Weights:
    """Weights that keep activations of unit scale, different for every expert."""

    def stacked(outputs: int, inputs: int) -> torch.Tensor:
        weight = torch.empty(layer.experts, outputs, inputs, dtype=DTYPE)
        # One expert's numbers, shifted for the others: drawing gigabytes takes longer than timing.
        drawn = (torch.randn(outputs * inputs) * inputs**-0.5).to(DTYPE)
        for expert in range(layer.experts):
            weight[expert] = drawn.roll(expert * 131).view(outputs, inputs)
        return weight

    return Weights(
        gate_up=stacked(2 * layer.intermediate, layer.hidden),
        down=stacked(layer.hidden, layer.intermediate),
    )


def random_inputs(layer: Layer, tokens: int, routing: str) -> Inputs:
    """A draw of hidden states and routing.

    Uniform: all experts equally likely. Skewed: by Zipf's law, the order of the experts random.
    Even: one after the other, in random order.
    """
    routing_weights = torch.rand(tokens, layer.top_k) + 0.1
    routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
    return (
        torch.randn(tokens, layer.hidden).to(DTYPE),
        _expert_ids(layer, tokens, routing),
        routing_weights.to(DTYPE),
    )


def _expert_ids(layer: Layer, tokens: int, routing: str) -> torch.Tensor:
    """int64 [T, top_k], a token's all different."""
    if routing == EVEN:
        turns = torch.arange(tokens * layer.top_k) % layer.experts
        return torch.randperm(layer.experts)[turns].view(tokens, layer.top_k)
    popularity = torch.ones(layer.experts)
    if routing == "skewed":
        popularity = (1 / torch.arange(1, layer.experts + 1))[torch.randperm(layer.experts)]
    # The top k of log-probabilities plus Gumbel noise: a draw without replacement.
    noise = -torch.empty(tokens, layer.experts).exponential_().log()
    return (popularity.log() + noise).topk(layer.top_k, dim=-1).indices
