"""How many CTAs of a kernel a multiprocessor holds at a time, and what keeps it from more."""

from dataclasses import dataclass
from typing import Literal

from coxcompile.gpu_analysis.targets import Target

Limiter = Literal["warps", "CTAs", "registers", "shared memory", "tensor memory"]

REGISTERS_UNIT = 256
"""That NVIDIA hands to a warp at a time."""
PARTITIONS = 4
"""Of a multiprocessor, each with a quarter of its registers (AMD: SIMDs)."""
SHARED_UNIT = 128
TENSOR_MEMORY_UNIT = 32
"""Columns at least, and always a power of two."""


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """CTAs that one multiprocessor holds, its warps' part of all that fit, and what limits it.

    ``ctas`` is 0 for a kernel that does not run at all, for want of what limits it.
    """

    ctas: int
    share: float
    limiter: Limiter


def occupancy(
    target: Target,
    *,
    warps: int,
    registers: int,
    shared_bytes: int,
    tensor_memory_columns: int = 0,
) -> Occupancy:
    """As NVIDIA's occupancy calculator counts (cuda_occupancy.h); AMD's limits likewise.

    Args:
        target: the GPU.
        warps: of a CTA.
        registers: of a thread; on AMD vector registers, accumulators included.
        shared_bytes: of a CTA.
        tensor_memory_columns: of a CTA.
    """
    by_limiter: dict[Limiter, int] = {
        "warps": target.warps // warps,
        "CTAs": target.ctas,
        "registers": _by_registers(target, warps, registers),
        "shared memory": _by_shared_memory(target, shared_bytes),
    }
    if tensor_memory_columns:
        columns = max(TENSOR_MEMORY_UNIT, 1 << (tensor_memory_columns - 1).bit_length())
        by_limiter["tensor memory"] = target.tensor_memory_columns // columns
    limiter = min(by_limiter, key=by_limiter.__getitem__)
    ctas = by_limiter[limiter]
    return Occupancy(ctas=ctas, share=ctas * warps / target.warps, limiter=limiter)


def _by_registers(target: Target, warps: int, registers: int) -> int:
    if target.is_amd:
        # A lane's registers come in eights.
        of_a_warp = _rounded_up(registers, 8) * target.warp_size
    else:
        of_a_warp = _rounded_up(registers * target.warp_size, REGISTERS_UNIT)
    of_a_partition = target.registers // PARTITIONS
    return of_a_partition // max(of_a_warp, 1) * PARTITIONS // warps


def _by_shared_memory(target: Target, shared_bytes: int) -> int:
    if shared_bytes > target.shared_bytes_per_cta:
        return 0
    of_a_cta = _rounded_up(shared_bytes + target.shared_bytes_reserved, SHARED_UNIT)
    return target.shared_bytes // of_a_cta if of_a_cta else target.ctas


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
