"""Routings for the predictions: one of a given skew, and experts placed without regard to it."""

from dataclasses import replace

import numpy as np
from scipy.optimize import brentq

from coxcompile.planner.expert_costs import ExpertCosts, Floats
from coxcompile.planner.model_spec import ModelSpec


def skewed_probabilities(model: ModelSpec, hottest: int, hit_ratio: float) -> Floats:
    """[MoE layers, E]: the ``hottest`` experts of each layer take ``hit_ratio`` of the choices.

    From one expert to the next the probability falls by the same factor r, so that the n hottest
    of E take (1 - r^n) / (1 - r^E).

    Raises:
        ValueError: the hottest experts take that share or more when all are alike, or one would be
            chosen by more tokens than there are.
    """
    if not hottest / model.experts < hit_ratio < 1:
        raise ValueError(
            f"hit_ratio is {hit_ratio}, but must lie between {hottest} / {model.experts}, the "
            "share when all experts are alike, and 1"
        )

    def excess(factor: float) -> float:
        return float((1 - factor**hottest) / (1 - factor**model.experts) - hit_ratio)

    factor = brentq(excess, 1e-6, 1 - 1e-9)
    shares = factor ** np.arange(model.experts)
    probabilities = model.top_k * shares / shares.sum()
    if probabilities[0] > 1:
        raise ValueError(
            f"hit_ratio is {hit_ratio}, but then {probabilities[0]:.2f} of all tokens would choose "
            f"the hottest expert of {model.name}; lower it"
        )
    return np.tile(probabilities, (model.moe_layers, 1))


def placed_at_random(costs: ExpertCosts) -> ExpertCosts:
    """The expected costs when experts are resident, migrating or the CPU's without regard to heat.

    Any n of a layer's E experts then cost n / E of all, and are missed by a token as often as n
    of average heat (the geometric mean of the chances to be missed).
    """
    experts = costs.choices.shape[1] - 1
    share = np.arange(experts + 1) / experts

    def spread(running_sum: Floats) -> Floats:
        expected: Floats = running_sum[:, -1:] * share
        return expected

    return replace(
        costs,
        gpu_seconds=spread(costs.gpu_seconds),
        cpu_seconds=spread(costs.cpu_seconds),
        fetched_experts=spread(costs.fetched_experts),
        token_misses=costs.token_misses[:, :1] ** (1 - share),
        choices=spread(costs.choices),
    )
