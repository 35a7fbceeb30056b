"""The roofline of this machine's CPU, measured: GEMM peak and read bandwidth.

A kernel that does ``flops`` floating-point operations and must read ``bytes_read`` bytes from
memory cannot finish sooner than either alone takes at the best rate the machine sustains (Williams,
Waterman & Patterson, "Roofline", CACM 2009). Both rates are measured with PyTorch itself, on all
the threads it uses; on shared machines they drift, by a factor of two within minutes, so measure
them beside what is compared with them.

    python -m coxcompile.measurement.roofline
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

BUFFER_BYTES = 512 * 2**20
"""Size of the buffer that is read, many times a last-level cache."""

GEMM_ROWS, GEMM_OUTPUTS, GEMM_DEPTH = 4096, 1024, 2048
"""Shape of the timed linear, [GEMM_ROWS, GEMM_DEPTH] @ [GEMM_OUTPUTS, GEMM_DEPTH]ᵀ.

Enough rows that repacking the weight, which PyTorch's linear does on every call, costs nothing.
"""

_SECONDS_PER_RATE = 0.12
_LEAST_REPEATS = 3


@dataclass(frozen=True)
class Roofline:
    """The two rates that bound a kernel on this machine."""

    gemm_flops_per_second: float
    """Floating-point operations per second of a large linear, a multiply-add counted as two."""
    read_bytes_per_second: float
    """Bytes per second streamed from memory by all threads together."""

    def seconds(self, flops: float, bytes_read: float) -> float:
        """The least time, in seconds, in which ``flops`` can be done and ``bytes_read`` read."""
        return max(flops / self.gemm_flops_per_second, bytes_read / self.read_bytes_per_second)


def measure_roofline(dtype: torch.dtype = torch.bfloat16) -> Roofline:
    """Measure both rates in about 0.3 seconds, as the best of several repeats.

    ``dtype`` is that of the linear's operands. The first call also allocates the 512 MiB buffer,
    which is kept.
    """
    _gemm_seconds(dtype)
    return Roofline(
        gemm_flops_per_second=_GEMM_FLOPS / _best_of_repeats(lambda: _gemm_seconds(dtype)),
        read_bytes_per_second=BUFFER_BYTES / _best_of_repeats(_read_seconds),
    )


def sample_roofline(dtype: torch.dtype = torch.bfloat16) -> Roofline:
    """Measure both rates once, in some tens of milliseconds, and leave the caches cold.

    For putting a sample right before and right after each timed call. The buffer is read last:
    whatever runs next finds none of its own data in a cache.
    """
    gemm_seconds = _gemm_seconds(dtype)
    return Roofline(
        gemm_flops_per_second=_GEMM_FLOPS / gemm_seconds,
        read_bytes_per_second=BUFFER_BYTES / _read_seconds(),
    )


_GEMM_FLOPS = 2 * GEMM_ROWS * GEMM_OUTPUTS * GEMM_DEPTH


@cache
def _gemm_operands(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(GEMM_ROWS, GEMM_DEPTH).to(dtype),
        torch.randn(GEMM_OUTPUTS, GEMM_DEPTH).to(dtype),
    )


@cache
def _buffer() -> Tensor:
    # Memory never written reads fast: all of it is one page of zeros.
    return torch.empty(BUFFER_BYTES // 8, dtype=torch.float64).uniform_(1, 2)


def _gemm_seconds(dtype: torch.dtype) -> float:
    rows, weight = _gemm_operands(dtype)
    start = time.perf_counter()
    functional.linear(rows, weight)
    return time.perf_counter() - start


def _read_seconds() -> float:
    # Of PyTorch's reductions amax reads fastest, as fast as hand-written AVX-512 loads; linear with
    # one row reads at half that.
    buffer = _buffer()
    start = time.perf_counter()
    buffer.amax()
    return time.perf_counter() - start


def _best_of_repeats(timed: Callable[[], float]) -> float:
    repeats = [timed() for _ in range(_LEAST_REPEATS)]
    while sum(repeats) < _SECONDS_PER_RATE:
        repeats.append(timed())
    return min(repeats)


if __name__ == "__main__":
    for measured_dtype in (torch.bfloat16, torch.float32):
        roofline = measure_roofline(measured_dtype)
        print(
            f"{str(measured_dtype).removeprefix('torch.')}: linear "
            f"{roofline.gemm_flops_per_second / 1e9:.0f} GFLOP/s, read "
            f"{roofline.read_bytes_per_second / 1e9:.1f} GB/s, {torch.get_num_threads()} threads"
        )
