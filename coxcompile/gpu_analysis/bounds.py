"""Roofline of a product on a target: the least seconds its bytes and FLOP can take."""

from dataclasses import dataclass
from typing import Literal

from coxcompile.gpu_analysis.expected_routing import ExpertLayer, expected_routing
from coxcompile.gpu_analysis.products import Product
from coxcompile.gpu_analysis.targets import Target
from coxcompile.runtime.kernels.gpu.configurations import ProductConfiguration


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Expected values over uniform random routing; every second is a lower bound.

    Attributes:
        active_experts: whose weights are read, each once.
        tiles: of tokens.
        ctas: tiles of the result, each a CTA's.
        flops: that the product takes.
        useful_share: ``flops`` over those of whole tiles, padding included.
        memory_bytes: between device memory and the GPU. That an expert's weights are read only once
            supposes that its tiles run close together, so that level 2 still has them.
        l2_bytes: that tiles read from level 2, and that is written.
        memory_seconds: of ``memory_bytes`` at the data sheet's bandwidth.
        matrix_seconds: of whole tiles' FLOP at the data sheet's peak.
        l2_seconds: of ``l2_bytes``.
        ridge: FLOP a byte from which on the target is compute-bound.
    """

    active_experts: float
    tiles: float
    ctas: float
    flops: float
    useful_share: float
    memory_bytes: float
    l2_bytes: float
    memory_seconds: float
    matrix_seconds: float
    l2_seconds: float
    ridge: float

    @property
    def intensity(self) -> float:
        """FLOP per byte of device memory."""
        return self.flops / self.memory_bytes

    @property
    def seconds(self) -> float:
        """The least there can be."""
        return max(self.memory_seconds, self.matrix_seconds, self.l2_seconds)

    @property
    def bound(self) -> Literal["memory", "compute"]:
        """Which of device memory and matrix units takes longer; level 2 may take longer still."""
        return "memory" if self.memory_seconds > self.matrix_seconds else "compute"


def bounds(
    layer: ExpertLayer,
    tokens: int,
    product: Product,
    configuration: ProductConfiguration,
    block_tokens: int,
    target: Target,
) -> Bounds:
    """Of one product of ``layer`` for ``tokens`` tokens.

    Raises:
        ValueError: see :func:`~coxcompile.gpu_analysis.expected_routing.expected_routing`.
    """
    routing = expected_routing(layer, tokens, block_tokens)
    ctas = routing.tiles * product.blocks(configuration)
    steps = product.steps(configuration)
    flops = float(routing.choices * product.flops_per_choice())
    issued = ctas * steps * product.tile_flops(configuration, block_tokens)
    memory_bytes = product.memory_bytes(tokens, routing)
    l2_bytes = ctas * steps * product.tile_bytes(configuration, block_tokens)
    l2_bytes += routing.choices * product.result_bytes
    return Bounds(
        active_experts=routing.active_experts,
        tiles=routing.tiles,
        ctas=ctas,
        flops=flops,
        useful_share=flops / issued,
        memory_bytes=memory_bytes,
        l2_bytes=l2_bytes,
        memory_seconds=memory_bytes / target.memory_bytes_per_second,
        matrix_seconds=issued / peak(target, product.weights),
        l2_seconds=l2_bytes / target.l2_bytes_per_second,
        ridge=peak(target, product.weights) / target.memory_bytes_per_second,
    )


def peak(target: Target, weights: str) -> float:
    """FLOP a second of the matrix instructions that products of such weights use.

    Quantised weights are multiplied as bfloat16.
    """
    if weights != "float32":
        return target.flops_per_second
    return target.flops_per_second * target.float32_share / target.float32_products
