"""The expert kernels beside grouped_mm and the roofline, on the layers of the paper's models."""

import functools
from collections.abc import Callable
from functools import partial

import torch
from gpu_cases import Case, Figures

from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.measurement.device_timing import DeviceClock, interleaved_medians
from coxcompile.measurement.product_bench import Tokens
from coxcompile.measurement.random_experts import ExpertForm, RandomExperts
from coxcompile.measurement.random_tokens import popularity, random_tokens
from coxcompile.measurement.roofline import Roofline
from coxcompile.planner.models import model_named
from coxcompile.runtime.kernels.gpu.experts import experts_subset_
from coxcompile.runtime.kernels.grouped import experts_subset_ as grouped_experts_subset_

MODELS = ("qwen3-30b-a3b", "mixtral-8x7b", "deepseek-v2-lite")
TOKENS = (1, 8, 64, 512, 4096)
DRAWS = 3
ROUNDS = 15


def kernel_cases(device: torch.device) -> list[Case]:
    """What the device can do, then a case for each layer and number of tokens."""
    cases = [Case("roofline", partial(roofline, device))]
    for name in MODELS:
        layer = ExpertLayer.of_model(model_named(name))
        for tokens in TOKENS:
            case = Case(f"{layer.name}, {tokens} tokens", partial(compared, layer, tokens, device))
            cases.append(case)
    return cases


def roofline(device: torch.device) -> Figures:
    """Measured: bfloat16 products and reads."""
    rates = _rates(device)
    return {
        "TFLOP/s": rates.gemm_flops_per_second / 1e12,
        "GB/s": rates.read_bytes_per_second / 1e9,
    }


def compared(layer: ExpertLayer, tokens: int, device: torch.device) -> Figures:
    """Medians in microseconds, and the roofline's time over ours; uniform routing."""
    clock, experts = _clock(device), _experts(layer, device)
    likely = popularity("uniform", layer.experts, layer.top_k, device)
    sizes = (tokens, layer.hidden, layer.top_k, torch.bfloat16)
    draws = [random_tokens(*sizes, likely) for _ in range(DRAWS)]
    slots = torch.arange(layer.experts, device=device)
    output = torch.zeros(tokens, layer.hidden, device=device)
    weights = (slots, experts.gate_up.stored, experts.down.stored)

    def timed(implementation: Callable[..., None]) -> Callable[[int], object]:
        return lambda number: implementation(output, *draws[number % DRAWS], *weights)

    medians = interleaved_medians(
        {"Triton": timed(experts_subset_), "grouped_mm": timed(grouped_experts_subset_)},
        ROUNDS,
        clock.seconds,
    )
    least = roofline_seconds(layer, draws[0], device)
    return {
        "roofline µs": least * 1e6,
        "Triton µs": medians["Triton"] * 1e6,
        "grouped_mm µs": medians["grouped_mm"] * 1e6,
        "Triton, of the roofline": least / medians["Triton"],
        "grouped_mm / Triton": medians["grouped_mm"] / medians["Triton"],
    }


def roofline_seconds(layer: ExpertLayer, draw: Tokens, device: torch.device) -> float:
    """Active experts' weights read once, hidden states read and sums written, all products."""
    _, ids, _ = draw
    elements = 3 * layer.hidden * layer.intermediate
    active = len(ids.flatten().bincount().nonzero())
    moved = 2 * (active * elements + len(ids) * layer.hidden) + 4 * len(ids) * layer.hidden
    return _rates(device).seconds(2 * ids.numel() * elements, moved)


@functools.cache
def _clock(device: torch.device) -> DeviceClock:
    return DeviceClock(device)


@functools.cache
def _rates(device: torch.device) -> Roofline:
    return _clock(device).roofline()


@functools.lru_cache(maxsize=1)
def _experts(layer: ExpertLayer, device: torch.device) -> RandomExperts:
    return RandomExperts(ExpertForm(), layer.experts, layer.hidden, layer.intermediate, device)
