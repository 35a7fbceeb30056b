"""The C++ extension ``coxcompile._emulated``, and the registration of its device."""

import atexit
import functools
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch.utils.backend_registration import rename_privateuse1_backend

NAME = "emulated"

Speed = tuple[float, float]
"""Of a link: bytes per second, seconds of latency."""

CopyPair = tuple[torch.Tensor, torch.Tensor]
"""Destination, source."""

Work = Callable[[], float | None]
"""Does something, and may return the seconds that it is to take."""


class Extension(Protocol):
    """What ``csrc/emulated/module.cpp`` defines. Times are seconds, sizes bytes."""

    def register_device(self) -> None:
        """Once in a process."""

    def shut_down(self) -> None:
        """Skip what has not begun, and end all threads."""

    def configure(
        self,
        memory_bytes: int | None,
        host_to_device: Speed | None,
        device_to_host: Speed | None,
        seed: int,
        most_seconds: float,
        share: float,
    ) -> None:
        """See ``settings.configure`` and ``settings.Delays``."""

    def delay_label(self, label: str, seconds: float) -> None:
        """See ``settings.delay_label``."""

    def statistics(self) -> tuple[int, int, int, int, int]:
        """The attributes of ``records.Statistics``."""

    def reset_statistics(self) -> None:
        """See ``records.reset_statistics``."""

    def start_timeline(self) -> None:
        """See ``records.start_timeline``."""

    def take_timeline(self) -> list[tuple[str, int, str, float, float]]:
        """The attributes of each ``records.Span``."""

    def exchange_label(self, label: str) -> str:
        """Set the label of the calling thread's copies, and return the one until now."""

    def enqueue(self, function: Work, label: str, seconds: float) -> None:
        """See ``operations.enqueue``."""

    def host_function(self, function: Work, label: str, seconds: float) -> None:
        """See ``operations.host_function``."""

    def run_on_host(self, function: Work, seconds: float) -> None:
        """See ``operations.run_on_host``."""

    def as_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """See ``operations.as_host``."""

    def borrow(self, tensor: torch.Tensor) -> torch.Tensor:
        """See ``operations.borrow``."""

    def copy_rows(
        self, rows: Sequence[CopyPair], count: torch.Tensor, whole: Sequence[CopyPair], label: str
    ) -> None:
        """See ``operations.copy_rows``."""

    def take_error(self) -> tuple[str, BaseException] | None:
        """See ``operations.take_error``."""

    def empty_cache(self) -> None:
        """See ``operations.empty_cache``."""

    def register_fake_cuda_guard(self) -> bool:
        """Whether there was no CUDA guard yet."""


@functools.cache
def import_extension() -> Extension:
    """The extension, with nothing registered.

    Raises:
        RuntimeError: it was not built.
    """
    try:
        return cast(Extension, importlib.import_module("coxcompile._emulated"))
    except ImportError as error:
        raise RuntimeError(
            "the emulated accelerator needs the C++ extension coxcompile._emulated, which was not "
            f"built ({error}). Install a C++ compiler (on Debian: apt-get install g++) and build "
            "it: python setup.py build_ext --inplace"
        ) from error


@functools.cache
def load() -> torch.device:
    """Register the device "emulated" with PyTorch, if it is not yet, and return it.

    From then on it is the process's ``torch.accelerator``. Its threads end at interpreter exit,
    without running what was still enqueued.

    Raises:
        RuntimeError: the extension was not built, or another backend has taken PyTorch's place for
            devices from outside (PrivateUse1).
    """
    loaded = import_extension()
    register_module: Callable[[str, ModuleType], None] = torch._register_device_module
    rename_privateuse1_backend(NAME)
    register_module(NAME, _device_module())
    loaded.register_device()
    atexit.register(loaded.shut_down)
    return torch.device(NAME, 0)


def loaded_extension() -> Extension:
    """The extension, with the device registered."""
    load()
    return import_extension()


def _device_module() -> ModuleType:
    """``torch.emulated``: what PyTorch looks up by a device's name."""
    functions: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        # Random numbers come from the CPU's generator.
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "_is_in_bad_fork": lambda: False,
        "_lazy_init": lambda: None,
    }
    module = ModuleType(f"torch.{NAME}")
    vars(module).update(functions)
    return module
