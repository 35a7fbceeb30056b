"""OP3: what each routed expert of each layer costs on either processor and on the link."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coxcompile.hardware import HardwareSpec, Processor
from coxcompile.planner.model_spec import ModelSpec

Floats = NDArray[np.float64]


def uniform_probabilities(model: ModelSpec) -> Floats:
    """[layers with experts, experts]: each token chooses each expert with probability k / E."""
    return np.full((model.moe_layers, model.experts), model.top_k / model.experts)


@dataclass(frozen=True)
class ExpertCosts:
    """Per layer and number of hottest experts; arrays of shape [layers, experts + 1].

    Entry [l, n] sums over the n hottest experts of layer l; what the others cost is the difference
    to the last entry. Layers whose experts are chosen alike are one row: ``row`` gives each MoE
    layer's.

    Attributes:
        gpu_seconds: computing them on the GPU, one launch for all not included; zeros without one.
        cpu_seconds: computing them on the CPU.
        fetched_experts: how many of them are expected to be needed, so that they are fetched.
        token_misses: share of tokens that choose none of the experts from n on (the CPU's).
        choices: share of expert choices that fall on them (hit ratio when they are resident).
        most_tokens: [layers], tokens that the hottest expert is expected to get.
    """

    gpu_seconds: Floats
    cpu_seconds: Floats
    fetched_experts: Floats
    token_misses: Floats
    choices: Floats
    most_tokens: Floats
    row: NDArray[np.int64]


def expert_costs(
    model: ModelSpec,
    hardware: HardwareSpec,
    tokens: float,
    probabilities: Floats,
    *,
    hottest_first: bool = True,
) -> ExpertCosts:
    """The costs for ``tokens`` tokens routed with ``probabilities`` [layers, experts].

    With ``hottest_first`` False the experts keep their order, whatever their probabilities, and
    stand for the hottest in it: what a placement costs that does not know the routing.

    An expert e is expected to get t_e = tokens · p_e tokens and to be needed with probability
    a_e = 1 - (1 - p_e)^tokens, so needed it gets t_e / a_e. Computing it then takes (paper §4.1,
    OP3) max(6·t·h·h_e / P, (3·h·h_e·b + 2·t·h·b) / BW_mem), with P at the efficiency of t rows.
    """
    ranked = np.sort(probabilities, axis=1)[:, ::-1] if hottest_first else probabilities
    distinct, row = np.unique(ranked, axis=0, return_inverse=True)
    needed = 1 - np.power(1 - np.minimum(distinct, 1.0), tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = np.where(needed > 0, tokens * distinct / needed, 1.0)
    rows = np.maximum(rows, 1.0)
    cpu = needed * _seconds(model, hardware.cpu, rows)
    gpu = needed * _seconds(model, hardware.gpu, rows) if hardware.gpu else np.zeros_like(cpu)
    missed = np.cumsum(np.log1p(-np.minimum(distinct, 1 - 1e-12))[:, ::-1], axis=1)[:, ::-1]
    token_misses = np.exp(np.concatenate([missed, np.zeros((len(distinct), 1))], axis=1))
    return ExpertCosts(
        gpu_seconds=_running_sum(gpu),
        cpu_seconds=_running_sum(cpu),
        fetched_experts=_running_sum(needed),
        token_misses=token_misses,
        choices=_running_sum(distinct) / distinct.sum(axis=1, keepdims=True),
        most_tokens=tokens * distinct.max(axis=1),
        row=row.reshape(-1),
    )


def _seconds(model: ModelSpec, unit: Processor, rows: Floats) -> Floats:
    flops = 6 * rows * model.hidden * model.expert_dim
    bytes_read = model.expert_bytes + 2 * rows * model.hidden * model.element_bytes
    return unit.gemm_seconds(flops, bytes_read, rows)


def _running_sum(values: Floats) -> Floats:
    return np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
