"""Configurations worth compiling, in the order of what can be said of them before."""

import itertools
from collections.abc import Iterator

from coxcompile.gpu_analysis.bounds import bounds
from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.gpu_analysis.machine_code import MachineCode, Resources
from coxcompile.gpu_analysis.matrix_instructions import MatrixWork
from coxcompile.gpu_analysis.occupancy import occupancy
from coxcompile.gpu_analysis.prediction import predict
from coxcompile.gpu_analysis.products import WEIGHT_BYTES, Product, activation_bytes
from coxcompile.gpu_analysis.targets import Target
from coxcompile.runtime.kernels.gpu.configurations import ProductConfiguration

BLOCK_TOKENS = (16, 32, 64, 128)
BLOCK_OUTPUTS = (32, 64, 128, 256)
BLOCK_INPUTS = (32, 64, 128)
WARPS = (4, 8)
STAGES = (2, 3, 4, 5)
ACCUMULATORS = 128
"""Registers of a thread that sums may take; with more, kernels were found to spill."""
OTHER_REGISTERS = 64
"""Of a thread, beside sums: a guess until the kernel is compiled."""
FEWEST_BYTES = {"float8": 64, "int8": 64, "int4": 64}
"""Of a row of weights in a tile, by what they are stored as; of others 128, a cache line."""
FEWEST_OUTPUTS = {"HGMMA": 64, "tensor memory": 64}
"""That the instruction multiplies."""


def candidates(
    target: Target, product: Product, block_tokens: int
) -> Iterator[ProductConfiguration]:
    """All that can be thought to fit ``target``."""
    grid = itertools.product(
        BLOCK_OUTPUTS, BLOCK_INPUTS, WARPS, STAGES, (False, True) if _has_bulk(target) else (False,)
    )
    for block_outputs, block_inputs, warps, stages, descriptors in grid:
        configuration = ProductConfiguration(
            block_outputs=block_outputs,
            block_inputs=block_inputs,
            warps=warps,
            stages=stages,
            descriptors=descriptors,
        )
        row_bytes = block_inputs * WEIGHT_BYTES[product.weights]
        if row_bytes < FEWEST_BYTES.get(product.weights, 128):
            continue
        if block_outputs < FEWEST_OUTPUTS.get(target.mma, 0):
            continue
        if _accumulators(target, product, configuration, block_tokens) > ACCUMULATORS:
            continue
        if (
            _shared_bytes(target, product, configuration, block_tokens)
            > target.shared_bytes_per_cta
        ):
            continue
        yield configuration


def estimated_seconds(
    target: Target,
    layer: ExpertLayer,
    tokens: int,
    product: Product,
    configuration: ProductConfiguration,
    block_tokens: int,
) -> float:
    """A prediction with guesses in the place of machine code, to compile the likely ones first."""
    guessed = _guessed_resources(target, product, configuration, block_tokens)
    if not guessed.occupancy.ctas:
        return float("inf")
    return predict(
        bounds(layer, tokens, product, configuration, block_tokens, target),
        product,
        configuration,
        block_tokens,
        target,
        guessed,
        _guessed_code(target, product, configuration, block_tokens),
    ).seconds


def _has_bulk(target: Target) -> bool:
    """Whether there is a tensor memory accelerator that descriptors make use of."""
    return target.name in ("sm_90", "sm_100", "sm_120")


def _accumulators(
    target: Target, product: Product, configuration: ProductConfiguration, block_tokens: int
) -> int:
    threads = configuration.warps * target.warp_size
    return product.matrices * configuration.block_outputs * block_tokens // threads


def _shared_bytes(
    target: Target, product: Product, configuration: ProductConfiguration, block_tokens: int
) -> int:
    # Where matrix instructions read shared memory themselves, a step's tiles stay until they end.
    buffers = configuration.stages - (0 if target.mma in FEWEST_OUTPUTS else 1)
    return int(buffers * product.tile_bytes(configuration, block_tokens))


def _guessed_resources(
    target: Target, product: Product, configuration: ProductConfiguration, block_tokens: int
) -> Resources:
    registers = OTHER_REGISTERS + _accumulators(target, product, configuration, block_tokens)
    shared_bytes = _shared_bytes(target, product, configuration, block_tokens)
    return Resources(
        warps=configuration.warps,
        registers=registers,
        stack_bytes=0,
        shared_bytes=shared_bytes,
        tensor_memory_columns=0,
        occupancy=occupancy(
            target, warps=configuration.warps, registers=registers, shared_bytes=shared_bytes
        ),
    )


def _guessed_code(
    target: Target, product: Product, configuration: ProductConfiguration, block_tokens: int
) -> MachineCode:
    flops = product.tile_flops(configuration, block_tokens)
    elements = product.matrices * configuration.block_outputs * configuration.block_inputs
    if product.weights == "float32":
        flops *= target.float32_products
    # Tiles are written to shared memory, and read by two rows or columns of warps each. As for
    # instructions: some hundred a pass, and four for each number that is converted.
    tile_bytes = product.tile_bytes(configuration, block_tokens)
    stored_otherwise = WEIGHT_BYTES[product.weights] != activation_bytes(product.weights)
    converted = elements if stored_otherwise else 0
    threads = configuration.warps * target.warp_size
    rate = 0.5 if target.mma == "tensor memory" and configuration.block_outputs < 128 else 1.0
    return MachineCode(
        spill_bytes=0,
        asynchronous_copies={},
        matrix=MatrixWork(kind=target.mma, flops=flops, rate=rate),
        loop_instructions=100 + 4 * converted // threads,
        loop_shared_bytes=int(3 * tile_bytes),
    )
