"""Triton kernels launched without a GPU: compiled for one, and interpreted on CPU tensors."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import CompiledKernel
from triton.runtime import _allocation, driver
from triton.runtime.jit import JITFunction

from coxcompile.gpu_analysis.targets import TARGETS, Target
from coxcompile.runtime.emulated.triton_interpreter import interpret, tensors_in


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: compiled for the target: ``asm`` by stage, ``metadata``, ``name``.
        grid: programs in each axis.
        arguments: by parameter, constants included. It keeps the tensors alive.
    """

    kernel: CompiledKernel
    grid: tuple[int, int, int]
    arguments: dict[str, object]


# The interpreter patches triton.language, which the compiler uses too.
_lock = threading.RLock()


@contextmanager
def triton_target(name: str, *, execute: bool = True) -> Iterator[list[Launch]]:
    """Compile Triton kernels for a GPU that is not there, and run them on CPU tensors.

    Within it, on all threads, ``kernel[grid](...)`` compiles the kernel for the target as on a
    machine that has it, then interprets the programs one after another before it returns. What
    Triton raises for a kernel that the GPU cannot run is raised here too. The driver that was
    active before is active again afterwards: wait for streams that launch kernels until then.

    Args:
        name: "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120" or "gfx942".
        execute: whether to interpret; if not, tensors may be on any device and are left alone.

    Returns:
        The launches, in the order in which they began. It grows while kernels are launched.

    Raises:
        ValueError: no such target.
        RuntimeError: TRITON_INTERPRET is set, or another thread is within a ``triton_target``.
    """
    if name not in TARGETS:
        raise ValueError(f"name is {name!r}, but must be one of {', '.join(TARGETS)}")
    if knobs.runtime.interpret:
        raise RuntimeError(
            "TRITON_INTERPRET is set, with which Triton compiles no kernels: unset it before "
            "triton is imported"
        )
    entered = _Driver(name, execute)
    with _lock:
        before = driver._active
        if isinstance(before, _Driver) and before.thread != entered.thread:
            raise RuntimeError(
                f"triton_target({name!r}): another thread is within triton_target("
                f"{before.name!r}), and there is one target for all threads: enter it once, around "
                "all of them"
            )
        run_before = JITFunction.run
        driver.set_active(entered)
        JITFunction.run = _locked(run_before)
    try:
        yield entered.launches
    finally:
        with _lock:
            driver.set_active(before)
            JITFunction.run = run_before


def _locked(function: Any) -> Any:
    @functools.wraps(function)
    def locked(*arguments: Any, **names: Any) -> Any:
        with _lock:
            return function(*arguments, **names)

    return locked


class _Launcher:
    """What Triton makes for each compiled kernel, and keeps with it."""

    def __init__(self, source: Any, metadata: Any) -> None:
        compiled = source.fn.device_caches[driver.active.get_current_device()][0].values()
        self.kernel = next(kernel for kernel in compiled if kernel.metadata is metadata)

    def __call__(self, x: int, y: int, z: int, stream: int, *rest: Any) -> None:
        # After the stream: function, packed metadata, launch metadata, two hooks, the arguments.
        source = self.kernel.src
        arguments = dict(zip(source.fn.arg_names, rest[5:], strict=True))
        driver.active.launch(Launch(self.kernel, (x, y, z), arguments), stream)


class _Utilities:
    """What Triton asks about a device, and loads kernels onto it with."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def get_device_properties(self, device: str) -> dict[str, int]:
        return {
            "max_shared_mem": self.target.shared_bytes_per_cta,
            "warpSize": self.target.warp_size,
        }

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: str
    ) -> tuple[object, object, None, None, int]:
        """Module, function, registers, spills (both not known), and a program's most threads."""
        return object(), object(), None, None, 1024


class _Driver(DriverBase):  # type: ignore[misc]
    launcher_cls = _Launcher

    def __init__(self, name: str, execute: bool) -> None:
        self.name = name
        self.target = TARGETS[name]
        self.utils = _Utilities(self.target)
        self.execute = execute
        self.launches: list[Launch] = []
        self.thread = threading.get_ident()

    def launch(self, launch: Launch, stream: int) -> None:
        """Record the launch, and interpret it."""
        kernel = launch.kernel
        if self.execute:
            for tensor in tensors_in(launch.arguments.values()):
                if tensor.device.type != "cpu":
                    raise ValueError(
                        f"{kernel.name} was given a tensor on {tensor.device}, but interpreted "
                        "kernels take CPU tensors (coxcompile.runtime.emulated.borrow makes them)"
                    )
        self.launches.append(launch)
        if self.execute:
            self._allocate_scratch(launch, stream)
            interpret(kernel.src.fn, launch.grid, launch.arguments, kernel.src.signature)

    def _allocate_scratch(self, launch: Launch, stream: int) -> None:
        """Ask for it as a GPU's launcher does, so that a missing allocator is an error here too."""
        metadata = launch.kernel.metadata
        size = getattr(metadata, "global_scratch_size", 0)
        programs = launch.grid[0] * launch.grid[1] * launch.grid[2]
        if size and programs:
            size *= programs * metadata.num_ctas
            _allocation._allocator.get()(size, metadata.global_scratch_align, stream)

    @classmethod
    def is_active(cls) -> bool:
        return False  # only ever made active by triton_target

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("emulated launches have no C++ launcher")

    def get_current_target(self) -> GPUTarget:
        if self.target.is_amd:
            return GPUTarget("hip", self.name, self.target.warp_size)
        return GPUTarget("cuda", int(self.name.removeprefix("sm_")), self.target.warp_size)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> str:
        """Triton keeps compiled kernels by it: apart for each target, and from real GPUs."""
        return f"emulated {self.name}"

    def set_current_device(self, device: str) -> None:
        pass

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_benchmarker(self) -> Any:
        raise NotImplementedError(
            f"triton.autotune measures kernels, which the emulated {self.name} cannot: give it one "
            "configuration"
        )
