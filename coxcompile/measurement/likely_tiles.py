"""Which tiles are worth timing on the GPU at hand, and which of them work there."""

from dataclasses import replace

import torch
from triton.errors import TritonError

from coxcompile.gpu_analysis.candidates import BLOCK_TOKENS, candidates, estimated_seconds
from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.gpu_analysis.products import PRODUCTS, Product, products
from coxcompile.gpu_analysis.targets import TARGETS, Target
from coxcompile.measurement.product_bench import ProductBench, Tiles
from coxcompile.runtime.kernels.gpu.configurations import ProductConfiguration
from coxcompile.runtime.kernels.gpu.device import current_device

TOKENS_BEYOND = 4
"""A tile of more than so many times the tokens that an expert has on average is mostly padding."""


def current_target() -> Target:
    """The known target that the device that Triton launches on is, or is nearest to.

    Raises:
        LookupError: there is none.
    """
    names = current_device().names
    for name in names:
        if name in TARGETS:
            return TARGETS[name]
    raise LookupError(f"no target like {' or '.join(names)}; there are {', '.join(TARGETS)}")


def likely_tiles(
    target: Target, layer: ExpertLayer, weights: str, tokens: int, most: int
) -> list[Tiles]:
    """For each projection and ``block_tokens`` the ``most`` likeliest, the first persistent too."""
    average = tokens * layer.top_k / layer.experts
    result = []
    for block_tokens in BLOCK_TOKENS:
        if block_tokens > max(BLOCK_TOKENS[0], TOKENS_BEYOND * average):
            continue
        for name, product in zip(PRODUCTS, products(layer, weights), strict=True):
            best = _likeliest(target, layer, tokens, product, block_tokens)[:most]
            best += [replace(one, persistent=True) for one in best[:1]]
            result += [Tiles(name, block_tokens, one) for one in best]
    return result


def objection(bench: ProductBench, tiles: Tiles, error_bound: float) -> str | None:
    """Why these tiles cannot be used: they do not compile, do not fit, or compute other numbers.

    Raises:
        RuntimeError: the GPU's context is lost; nothing else can run on it.
    """
    try:
        error = bench.error(tiles)
    except (TritonError, RuntimeError) as reason:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return f"{type(reason).__name__}: {str(reason).strip().splitlines()[-1]}"
    # Not "error > bound": NaN is no result either.
    return None if error <= error_bound else f"its error is {error:.1e}, not below {error_bound}"


def _likeliest(
    target: Target, layer: ExpertLayer, tokens: int, product: Product, block_tokens: int
) -> list[ProductConfiguration]:
    def seconds(one: ProductConfiguration) -> float:
        return estimated_seconds(target, layer, tokens, product, one, block_tokens)

    return sorted(candidates(target, product, block_tokens), key=seconds)
