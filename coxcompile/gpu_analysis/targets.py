"""The GPUs that kernels are compiled for, one of each architecture, from their data sheets.

Sources: peaks, bandwidths and sizes are the vendor's data sheets'; limits of a multiprocessor are
the CUDA occupancy tables' ("Technical Specifications per Compute Capability" in the CUDA C++
programming guide), AMD's from its CDNA 3 ISA guide and LLVM's AMDGPU backend. What neither gives
is an assumption, stated where it is made.
"""

from dataclasses import dataclass
from typing import Literal

from coxcompile.naming import look_up

MmaKind = Literal["HMMA", "HGMMA", "tensor memory", "MFMA", "none"]
"""Matrix instructions: a warp's, a warp group's, tensor memory's (tcgen05), an AMD wave's."""

KIBI, MEBI = 2**10, 2**20
TERA, GIGA = 1e12, 1e9

SHARED_BYTES_PER_CLOCK = 128
"""That a multiprocessor's shared memory reads or writes, on every target."""

MEMORY_LATENCY_SECONDS = 1e-6
"""Of a read from a busy device memory. An assumption: microbenchmarks of these GPUs find 0.4 µs to
0.8 µs where nothing else reads."""
L2_LATENCY_SECONDS = 0.35e-6
"""Of a read from level 2 while others read. An assumption likewise, of 0.15 µs to 0.3 µs."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A GPU; sizes in bytes, rates per second, limits per multiprocessor (AMD: compute unit).

    Attributes:
        name: Triton's name of the architecture.
        device: the GPU that the numbers are of.
        multiprocessors: of the whole GPU.
        warp_size: threads of a warp (AMD: wave).
        mma: the widest matrix instruction there is.
        flops_per_second: dense bfloat16 products with float32 sums.
        float32_share: the part of it that instructions for float32 reach: TensorFloat-32's, on AMD
            float32's own.
        float32_products: of such instructions that one product takes (Triton's "tf32x3", "ieee").
        memory_bytes_per_second: of device memory.
        l2_bytes: of level 2, all of it.
        l2_bytes_per_second: that all multiprocessors together read from it.
        clock: boost, in hertz.
        warps, ctas, registers, shared_bytes: that fit.
        shared_bytes_per_cta: the most that one CTA may have.
        shared_bytes_reserved: that the system takes of each CTA's.
        tensor_memory_columns: of 512 bytes, 128 lanes of 32 bits; 0 where there is none.
    """

    name: str
    device: str
    multiprocessors: int
    warp_size: int = 32
    mma: MmaKind
    flops_per_second: float
    float32_share: float = 1 / 2
    float32_products: int = 3
    memory_bytes_per_second: float
    l2_bytes: int
    l2_bytes_per_second: float
    clock: float
    warps: int
    ctas: int
    registers: int = 65536
    shared_bytes: int
    shared_bytes_per_cta: int
    shared_bytes_reserved: int = KIBI
    tensor_memory_columns: int = 0

    @property
    def ridge(self) -> float:
        """FLOP per byte of device memory from which on a kernel can be compute-bound."""
        return self.flops_per_second / self.memory_bytes_per_second

    @property
    def is_amd(self) -> bool:
        """Whether machine code is AMD's."""
        return self.name.startswith("gfx")


def _l2(multiprocessors: int, clock: float) -> float:
    """An assumption but for the A100, whose white paper gives 5120 bytes a clock for 108."""
    return 5120 / 108 * multiprocessors * clock


_TARGETS = (
    Target(
        name="sm_80",
        device="A100 SXM 80 GB",
        multiprocessors=108,
        mma="HMMA",
        flops_per_second=312 * TERA,
        memory_bytes_per_second=2039 * GIGA,
        l2_bytes=40 * MEBI,
        l2_bytes_per_second=_l2(108, 1.41e9),
        clock=1.41e9,
        warps=64,
        ctas=32,
        shared_bytes=164 * KIBI,
        shared_bytes_per_cta=163 * KIBI,
    ),
    Target(
        name="sm_86",
        device="RTX 3090",
        multiprocessors=82,
        mma="HMMA",
        flops_per_second=71 * TERA,
        memory_bytes_per_second=936 * GIGA,
        l2_bytes=6 * MEBI,
        l2_bytes_per_second=_l2(82, 1.695e9),
        clock=1.695e9,
        warps=48,
        ctas=16,
        shared_bytes=100 * KIBI,
        shared_bytes_per_cta=99 * KIBI,
    ),
    Target(
        name="sm_89",
        device="L40S",
        multiprocessors=142,
        mma="HMMA",
        flops_per_second=362 * TERA,
        memory_bytes_per_second=864 * GIGA,
        l2_bytes=96 * MEBI,
        l2_bytes_per_second=_l2(142, 2.52e9),
        clock=2.52e9,
        warps=48,
        ctas=24,
        shared_bytes=100 * KIBI,
        shared_bytes_per_cta=99 * KIBI,
    ),
    Target(
        name="sm_90",
        device="H100 SXM 80 GB",
        multiprocessors=132,
        mma="HGMMA",
        flops_per_second=989 * TERA,
        memory_bytes_per_second=3350 * GIGA,
        l2_bytes=50 * MEBI,
        l2_bytes_per_second=_l2(132, 1.83e9),
        clock=1.83e9,
        warps=64,
        ctas=32,
        shared_bytes=228 * KIBI,
        shared_bytes_per_cta=227 * KIBI,
    ),
    Target(
        name="sm_100",
        device="B200",
        multiprocessors=148,
        mma="tensor memory",
        flops_per_second=2250 * TERA,
        memory_bytes_per_second=8000 * GIGA,
        l2_bytes=126 * MEBI,
        l2_bytes_per_second=_l2(148, 1.86e9),
        clock=1.86e9,
        warps=64,
        ctas=32,
        shared_bytes=228 * KIBI,
        shared_bytes_per_cta=227 * KIBI,
        tensor_memory_columns=512,
    ),
    Target(
        name="sm_120",
        device="RTX 5090",
        multiprocessors=170,
        mma="HMMA",
        flops_per_second=209.5 * TERA,
        memory_bytes_per_second=1792 * GIGA,
        l2_bytes=96 * MEBI,
        l2_bytes_per_second=_l2(170, 2.407e9),
        clock=2.407e9,
        warps=48,
        ctas=24,
        shared_bytes=100 * KIBI,
        shared_bytes_per_cta=99 * KIBI,
    ),
    # 512 registers a lane in each of four SIMDs of 64 lanes, at most 8 waves in each. Level 2 is
    # eight times 4 MiB, read at 128 bytes a clock and compute unit at most, 2048 a clock and die.
    Target(
        name="gfx942",
        device="MI300X",
        multiprocessors=304,
        warp_size=64,
        mma="MFMA",
        flops_per_second=1307 * TERA,
        float32_share=1 / 8,
        float32_products=1,
        memory_bytes_per_second=5300 * GIGA,
        l2_bytes=32 * MEBI,
        l2_bytes_per_second=8 * 2048 * 2.1e9,
        clock=2.1e9,
        warps=32,
        ctas=16,
        registers=4 * 512 * 64,
        shared_bytes=64 * KIBI,
        shared_bytes_per_cta=64 * KIBI,
        shared_bytes_reserved=0,
    ),
)

TARGETS: dict[str, Target] = {target.name: target for target in _TARGETS}
"""By Triton's name of the architecture."""


def target_named(name: str) -> Target:
    """The target of that name in :data:`TARGETS`.

    Raises:
        UnknownNameError: there is none; the message lists the names and the nearest.
    """
    return look_up("target", name, TARGETS)
