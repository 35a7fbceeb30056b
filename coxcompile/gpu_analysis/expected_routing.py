"""How many experts and tiles of tokens a layer's routing leads to, on average."""

import functools
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from coxcompile.planner.model_spec import ModelSpec

_NEGLIGIBLE = 1e-12


@dataclass(frozen=True, kw_only=True)
class ExpertLayer:
    """The dimensions of a layer's routed experts.

    Attributes:
        name: of the model.
        experts: E.
        top_k: experts of a token, all different.
        hidden: H, inputs of gate and up, outputs of down.
        intermediate: I, outputs of each of gate and up, inputs of down.
    """

    name: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int

    @classmethod
    def of_model(cls, model: ModelSpec) -> "ExpertLayer":
        """One of the model's MoE layers."""
        return cls(
            name=model.name,
            experts=model.experts,
            top_k=model.top_k,
            hidden=model.hidden,
            intermediate=model.expert_dim,
        )


@dataclass(frozen=True, kw_only=True)
class ExpectedRouting:
    """Expected values over uniform random routing.

    Attributes:
        choices: tokens * top_k.
        active_experts: that at least one token chose.
        tiles: of ``block_tokens`` choices of one expert, those not full included.
        fill: choices over the rows of all tiles.
    """

    choices: int
    active_experts: float
    tiles: float
    fill: float


@functools.lru_cache(maxsize=4096)
def expected_routing(layer: ExpertLayer, tokens: int, block_tokens: int) -> ExpectedRouting:
    """Of ``tokens`` that each choose top_k different experts, all sets equally likely.

    An expert's number of tokens is then exactly binomial (tokens, top_k / experts); numbers of
    different experts depend on each other, which changes no expected value of a sum over them.

    Raises:
        ValueError: ``tokens`` or ``block_tokens`` is less than 1.
    """
    for name, value in (("tokens", tokens), ("block_tokens", block_tokens)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it has to be at least 1")
    counts = np.arange(tokens + 1)
    probability = binom.pmf(counts, tokens, layer.top_k / layer.experts)
    likely = probability > _NEGLIGIBLE
    counts, probability = counts[likely], probability[likely]
    tiles = layer.experts * float(probability @ np.ceil(counts / block_tokens))
    choices = tokens * layer.top_k
    return ExpectedRouting(
        choices=choices,
        active_experts=layer.experts * float(probability @ (counts > 0)),
        tiles=tiles,
        fill=choices / (tiles * block_tokens),
    )
