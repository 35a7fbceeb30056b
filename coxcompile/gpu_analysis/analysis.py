"""A configuration compiled for a target, and whether it may be a default there."""

from dataclasses import dataclass

from coxcompile.gpu_analysis.compiling import PLAIN, Form, compiled_product
from coxcompile.gpu_analysis.machine_code import MachineCode, Resources, machine_code, resources
from coxcompile.gpu_analysis.products import Product
from coxcompile.gpu_analysis.targets import Target
from coxcompile.runtime.kernels.gpu.configurations import ProductConfiguration


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Of one product's compiled kernel; ``resources`` and ``code`` are None if it does not fit.

    Attributes:
        configuration: of the product.
        block_tokens: of a tile.
        resources: that it takes.
        code: its machine code; None too if it was not asked for because the kernel spills.
        mma_flops_ratio: FLOP of the loop's matrix instructions over those of the tile's step.
    """

    configuration: ProductConfiguration
    block_tokens: int
    resources: Resources | None
    code: MachineCode | None
    mma_flops_ratio: float


def analyse(
    target: Target,
    product: Product,
    block_tokens: int,
    configuration: ProductConfiguration,
    form: Form = PLAIN,
    *,
    in_full: bool = True,
) -> Analysis:
    """Compile one product for ``target`` and read the machine code.

    Args:
        target: the GPU.
        product: which one; its sizes do not matter.
        block_tokens: of a tile.
        configuration: of the product.
        form: which variant of the kernel.
        in_full: disassemble kernels that spill too.
    """
    kernel = compiled_product(
        target, product.weights, product.name, block_tokens, configuration, form
    )
    taken = None if kernel is None else resources(kernel, target)
    code, ratio = None, 0.0
    if taken is not None and (in_full or not taken.stack_bytes):
        code = machine_code(kernel, target)
        ratio = code.matrix.flops / product.tile_flops(configuration, block_tokens)
    return Analysis(
        configuration=configuration,
        block_tokens=block_tokens,
        resources=taken,
        code=code,
        mma_flops_ratio=ratio,
    )


def objection(target: Target, product: Product, analysis: Analysis) -> str | None:
    """Why the configuration must not be a default, or None if it may.

    It has to fit, keep its registers, and multiply with the widest matrix instructions there are,
    no more than its tile asks for (three times as many for float32 as "tf32x3").
    """
    taken, code = analysis.resources, analysis.code
    if taken is None:
        return "needs more shared memory or tensor memory than there is"
    if not taken.occupancy.ctas:
        return f"does not fit: {taken.occupancy.limiter}"
    if taken.stack_bytes:
        return f"spills registers, {taken.stack_bytes} bytes a thread"
    assert code is not None, "kernels that do not spill are disassembled"
    if code.matrix.kind != target.mma:
        return f"multiplies by {code.matrix.kind}, not by {target.mma}"
    expected = target.float32_products if product.weights == "float32" else 1
    if analysis.mma_flops_ratio != expected:
        return f"multiplies {analysis.mma_flops_ratio:.3g} times the tile's FLOP, not {expected}"
    return None
