"""The GPUs for which Triton kernels can be compiled without having one."""

from dataclasses import dataclass

from triton.backends.compiler import GPUTarget


@dataclass(frozen=True)
class EmulatedTarget:
    """A target and what a launch on a GPU of it is limited to.

    Attributes:
        target: what Triton compiles for.
        shared_memory: bytes of it that one program may use.
    """

    target: GPUTarget
    shared_memory: int


TARGETS = {
    "sm_80": EmulatedTarget(GPUTarget("cuda", 80, 32), 163 << 10),
    "sm_86": EmulatedTarget(GPUTarget("cuda", 86, 32), 99 << 10),
    "sm_89": EmulatedTarget(GPUTarget("cuda", 89, 32), 99 << 10),
    "sm_90": EmulatedTarget(GPUTarget("cuda", 90, 32), 227 << 10),
    "sm_100": EmulatedTarget(GPUTarget("cuda", 100, 32), 227 << 10),
    "sm_120": EmulatedTarget(GPUTarget("cuda", 120, 32), 99 << 10),
    "gfx942": EmulatedTarget(GPUTarget("hip", "gfx942", 64), 64 << 10),
}
"""By name. Limits: CUDA C++ programming guide, technical specifications per compute capability;
CDNA3 instruction set guide, local data share."""
