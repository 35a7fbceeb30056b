"""What benchmarks/triton_static.py reports of each kernel and of each layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coxcompile.gpu_analysis.analysis import Analysis, analyse
from coxcompile.gpu_analysis.bounds import Bounds, bounds
from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.gpu_analysis.machine_code import MachineCode, Resources, machine_code, resources
from coxcompile.gpu_analysis.products import PRODUCTS, Product, products
from coxcompile.gpu_analysis.routing_kernels import compiled_routing_kernels
from coxcompile.gpu_analysis.targets import Target
from coxcompile.planner.models import model_named
from coxcompile.runtime.kernels.gpu.configurations import (
    ExpertConfiguration,
    ProductConfiguration,
    Row,
    look_up,
)

LAYERS = tuple(
    ExpertLayer.of_model(model_named(name))
    for name in ("mixtral-8x7b", "deepseek-v2-lite", "qwen3-30b-a3b")
)
"""Those of the paper's three models."""
TOKENS = (64, 4096)
"""A step of decoding with 64 sequences, and a prefill."""


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One kernel, in one configuration, compiled for one target.

    Attributes:
        kernel: its name.
        config: weights, tile (outputs x tokens x inputs), warps, stages.
        target: Triton's name of the architecture.
        registers: of a thread.
        spill_bytes: of a thread, stores and loads.
        shared_bytes: of a CTA.
        occupancy: share of the warps that fit, and CTAs a multiprocessor with what limits them.
        mma: matrix instructions of the loop, how many; "none" for kernels without.
        mma_flops_ratio: their FLOP over the tile's; None for kernels without.
        copies: asynchronous ones, as they stand in the code.
        step_bytes: that a tile loads in a pass of its loop; None for kernels without.
        step_intensity: FLOP per byte of these.
    """

    kernel: str
    config: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    occupancy: float
    ctas: int
    limiter: str
    mma: str
    mma_flops_ratio: float | None
    copies: str
    step_bytes: float | None
    step_intensity: float | None


@dataclass(frozen=True, kw_only=True)
class RooflineRow:
    """Bounds of both products of a layer, in the configuration that the table gives."""

    layer: ExpertLayer
    tokens: int
    configuration: ExpertConfiguration
    gate_up: Bounds
    down: Bounds


def kernel_rows(target: Target, weights: Sequence[str], rows: Sequence[Row]) -> list[KernelRow]:
    """Of the products in all of the table's configurations, and of the kernels around them.

    Raises:
        ValueError: a configuration needs more than the target has.
    """
    result = []
    for name, stored, block_tokens, configuration in _configurations(target, weights, rows):
        product = products(LAYERS[0], stored)[PRODUCTS.index(name)]
        analysis = analyse(target, product, block_tokens, configuration)
        result.append(_product_row(target, product, analysis))
    for kernel in compiled_routing_kernels(target):
        taken, code = resources(kernel, target), machine_code(kernel, target)
        result.append(_row(target, kernel.name, "", taken, code))
    return result


def roofline_rows(target: Target, weights: str, rows: Sequence[Row]) -> list[RooflineRow]:
    """Of the paper's three models at :data:`TOKENS` tokens."""
    result = []
    for layer in LAYERS:
        for tokens in TOKENS:
            configuration = look_up(
                rows,
                (target.name,),
                weights,
                tokens * layer.top_k / layer.experts,
                experts=layer.experts,
                intermediate=layer.intermediate,
                hidden=layer.hidden,
            )
            gate_up, down = (
                bounds(
                    layer,
                    tokens,
                    product,
                    getattr(configuration, product.name),
                    configuration.block_tokens,
                    target,
                )
                for product in products(layer, weights)
            )
            result.append(
                RooflineRow(
                    layer=layer,
                    tokens=tokens,
                    configuration=configuration,
                    gate_up=gate_up,
                    down=down,
                )
            )
    return result


def _configurations(
    target: Target, weights: Sequence[str], rows: Sequence[Row]
) -> Iterator[tuple[str, str, int, ProductConfiguration]]:
    """Each different one once, in the order of the table."""
    every = (
        (name, row.weights, row.configuration.block_tokens, getattr(row.configuration, name))
        for name in PRODUCTS
        for row in rows
        if row.device == target.name and row.weights in weights
    )
    yield from dict.fromkeys(every)


def _product_row(target: Target, product: Product, analysis: Analysis) -> KernelRow:
    configuration, block_tokens = analysis.configuration, analysis.block_tokens
    tile = f"{configuration.block_outputs}x{block_tokens}x{configuration.block_inputs}"
    config = f"{product.weights} {tile} {configuration.warps} warps {configuration.stages} stages"
    if configuration.descriptors:
        config += " descriptors"
    if configuration.persistent:
        config += " persistent"
    if analysis.resources is None or analysis.code is None:
        raise ValueError(f"{product.name} {config} needs more than {target.name} has")
    return _row(
        target,
        f"project_{product.name}",
        config,
        analysis.resources,
        analysis.code,
        ratio=analysis.mma_flops_ratio,
        step_bytes=product.tile_bytes(configuration, block_tokens),
        step_flops=product.tile_flops(configuration, block_tokens),
    )


def _row(
    target: Target,
    kernel: str,
    config: str,
    taken: Resources,
    code: MachineCode,
    *,
    ratio: float | None = None,
    step_bytes: float | None = None,
    step_flops: int = 0,
) -> KernelRow:
    matrix = code.matrix
    copies = ", ".join(f"{count} {name}" for name, count in code.asynchronous_copies.items())
    return KernelRow(
        kernel=kernel,
        config=config,
        target=target.name,
        registers=taken.registers,
        spill_bytes=code.spill_bytes,
        shared_bytes=taken.shared_bytes,
        occupancy=taken.occupancy.share,
        ctas=taken.occupancy.ctas,
        limiter=taken.occupancy.limiter,
        mma=f"{matrix.count} {', '.join(matrix.names)}" if matrix.names else "none",
        mma_flops_ratio=ratio,
        copies=copies,
        step_bytes=step_bytes,
        step_intensity=step_flops / step_bytes if step_bytes else None,
    )
