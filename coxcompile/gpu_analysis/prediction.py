"""A prediction of a product's seconds from its bounds and its machine code, to rank tiles by.

Beside device memory, level 2 and the matrix units, the loop's instructions have to be issued and
its operands have to pass shared memory. What a multiprocessor does at once overlaps as far as it
has warps to do so; every round of CTAs begins with a read that nothing overlaps. That is a model
with assumptions of its own: good for choosing among tiles, not for saying how fast they are.
"""

import math
from dataclasses import dataclass

from coxcompile.gpu_analysis.bounds import Bounds
from coxcompile.gpu_analysis.machine_code import MachineCode, Resources
from coxcompile.gpu_analysis.products import Product
from coxcompile.gpu_analysis.targets import (
    L2_LATENCY_SECONDS,
    MEMORY_LATENCY_SECONDS,
    SHARED_BYTES_PER_CLOCK,
    Target,
)
from coxcompile.runtime.kernels.gpu.configurations import ProductConfiguration

SCHEDULERS = 4
"""Of a multiprocessor; each issues one instruction a clock, to one of its warps."""
BLEND = 4
"""The norm by which times that overlap are added: 2 that are equal make 1.19 of one."""
NOT_IN_FLIGHT = 1.5
"""Of a pipeline's stages: one is being multiplied, and its buffer is free for the next only when
that has ended, on average after half a step."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds that a product is predicted to take, and what they are made of.

    Attributes:
        seconds: of the product.
        memory_seconds: of device memory, with as many bytes in flight as CTAs ask for.
        loop_seconds: of the multiprocessor with the most tiles, all of them in level 2.
        l2_seconds: as of the bounds.
        fill_seconds: of filling the pipelines.
        waves: rounds of CTAs.
    """

    seconds: float
    memory_seconds: float
    loop_seconds: float
    l2_seconds: float
    fill_seconds: float
    waves: float


def predict(
    bounds: Bounds,
    product: Product,
    configuration: ProductConfiguration,
    block_tokens: int,
    target: Target,
    resources: Resources,
    code: MachineCode,
) -> Prediction:
    """Of a product with these bounds, whose compiled kernel has these resources and this code.

    Raises:
        ValueError: no CTA fits a multiprocessor.
    """
    resident = resources.occupancy.ctas
    if not resident:
        raise ValueError(f"resources fit no CTA, for want of {resources.occupancy.limiter}")
    of_one = bounds.ctas / target.multiprocessors
    tile_bytes = product.tile_bytes(configuration, block_tokens)
    bulk_bytes = product.tile_weight_bytes(configuration) if configuration.descriptors else 0.0
    at_once = min(resident, of_one)
    steps_in_flight = at_once * (configuration.stages - NOT_IN_FLIGHT)
    step_seconds = _blended(
        _loop_clocks(product, target, resources, code, at_once, bulk_bytes) / target.clock,
        L2_LATENCY_SECONDS / steps_in_flight,
    )
    loop_seconds = math.ceil(of_one) * product.steps(configuration) * step_seconds
    bytes_in_flight = target.multiprocessors * steps_in_flight * tile_bytes
    memory_seconds = _blended(
        bounds.memory_seconds, bounds.memory_bytes / bytes_in_flight * MEMORY_LATENCY_SECONDS
    )
    waves = math.ceil(of_one / resident)
    # A descriptor is written to memory and read back before the first tile is asked for.
    reads = 2 if configuration.descriptors else 1
    fill_seconds = waves * reads * MEMORY_LATENCY_SECONDS
    return Prediction(
        seconds=_blended(memory_seconds, loop_seconds, bounds.l2_seconds) + fill_seconds,
        memory_seconds=memory_seconds,
        loop_seconds=loop_seconds,
        l2_seconds=bounds.l2_seconds,
        fill_seconds=fill_seconds,
        waves=waves,
    )


def _blended(*seconds: float) -> float:
    """A little more than the longest, if others take nearly as long: overlap is never perfect."""
    longest = max(seconds)
    total = math.fsum((value / longest) ** BLEND for value in seconds)
    return longest * math.pow(total, 1 / BLEND)


def _loop_clocks(
    product: Product,
    target: Target,
    resources: Resources,
    code: MachineCode,
    ctas: float,
    bulk_bytes: float,
) -> float:
    """Of one CTA's pass, on a multiprocessor that does the same for ``ctas`` at a time."""
    per_clock = target.flops_per_second / target.multiprocessors / target.clock
    if product.weights == "float32":
        per_clock *= target.float32_share
    parts = (
        code.matrix.flops / (per_clock * code.matrix.rate),
        (code.loop_shared_bytes + bulk_bytes) / SHARED_BYTES_PER_CLOCK,
        code.loop_instructions * resources.warps / SCHEDULERS,
    )
    warps_to_overlap = max(ctas * resources.warps / SCHEDULERS, 1.0)
    return max(parts) + (sum(parts) - max(parts)) / warps_to_overlap
