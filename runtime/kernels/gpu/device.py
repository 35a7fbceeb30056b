"""The device that Triton launches on now: what the kernels' host side has to know of it."""

import functools
from dataclasses import dataclass

import torch
import triton

from coxcompile.runtime.kernels.gpu.configurations import ProductConfiguration

_WARPS_AT_ONCE = 8
"""Of programs with big tiles, on a multiprocessor: their registers are full then."""


@dataclass(frozen=True)
class Device:
    """Where kernels run.

    Attributes:
        names: what to look it up as in the table of configurations, the most specific name first:
            the device's own, its target's, targets whose configurations it can run too.
        multiprocessors: how many programs, or groups of them, run side by side.
        float32_precision: how products of float32 are computed: float32's own accuracy on matrix
            units, where they can.
    """

    names: tuple[str, ...]
    multiprocessors: int
    float32_precision: str

    def programs(self, product: ProductConfiguration) -> int:
        """How many persistent programs a multiprocessor has at once."""
        return max(1, _WARPS_AT_ONCE // product.warps)

    def provide_descriptor_memory(self) -> None:
        """Let Triton allocate what descriptors that kernels make are stored in."""
        triton.set_allocator(_allocate)


_RUNS_CODE_FOR = {"sm_87": "sm_86", "sm_103": "sm_100", "sm_121": "sm_120", "gfx950": "gfx942"}
"""Targets without rows of their own, and the nearest one that has some."""


def current_device() -> Device:
    """That of Triton's active driver: a GPU, or an emulated target."""
    driver = triton.runtime.driver.active
    target = driver.get_current_target()
    name = f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)
    own: tuple[str, ...] = ()
    multiprocessors = 4  # of an emulated target: few, so that persistent programs have work
    if driver.get_active_torch_device().type == "cuda":
        own, multiprocessors = _properties(torch.cuda.current_device())
    near = _RUNS_CODE_FOR.get(name)
    return Device(
        names=(*own, name, *((near,) if near else ())),
        multiprocessors=multiprocessors,
        float32_precision="tf32x3" if target.backend == "cuda" else "ieee",
    )


@functools.cache
def _properties(index: int) -> tuple[tuple[str, ...], int]:
    properties = torch.cuda.get_device_properties(index)
    return (properties.name,), properties.multi_processor_count


def _allocate(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    return torch.empty(size, dtype=torch.int8, device=_current_torch_device())


def _current_torch_device() -> torch.device:
    device: torch.device = triton.runtime.driver.active.get_active_torch_device()
    return device
