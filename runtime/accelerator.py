"""What the executor asks of an accelerator: memory, streams, kernels, copies; cuda's answer."""

import contextlib
import ctypes
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from coxcompile.runtime.instructions import STREAMS, Stream
from coxcompile.runtime.kernels import grouped_experts_subset_, triton_kernel

Kernel = Callable[..., Any]
KernelKind = Literal["triton", "torch"]
Pair = tuple[torch.Tensor, torch.Tensor]
"""Destination and source of a copy."""


@dataclass(frozen=True)
class Span:
    """What one node took, in seconds on one clock; ``node`` is its name in the graph."""

    node: str
    stream: Stream
    begin: float
    end: float


@dataclass(frozen=True)
class Traffic:
    """Bytes copied in either direction, and the most that lay on the accelerator at once."""

    host_to_device: int
    device_to_host: int
    peak_bytes: int


class Accelerator(ABC):
    """One accelerator. All methods but ``host`` and ``synchronize`` return at once.

    Attributes:
        device: where its tensors lie.
        kernel_device: what partitions for it are compiled for.
        throttled: whether nodes are made to last the ``seconds`` given with them.
    """

    device: torch.device
    kernel_device: torch.device
    throttled: bool = False

    @functools.cached_property
    def streams(self) -> dict[Stream, torch.Stream]:
        """A stream for each name but the host's; transfers of activations go first on the link."""
        return {
            name: torch.Stream(self.device, priority=0 if name == "weights" else -1)
            for name in STREAMS
            if name != "host"
        }

    @abstractmethod
    def call(
        self,
        kernel: Kernel,
        arguments: Sequence[Any],
        values: Sequence[torch.Tensor],
        label: str,
        seconds: float,
    ) -> list[torch.Tensor]:
        """Run a kernel that returns new tensors like ``values``, on the current stream."""

    @abstractmethod
    def launch(
        self, kernel: Kernel, arguments: Sequence[Any], label: str, seconds: float = 0.0
    ) -> None:
        """Run a kernel that writes into its arguments, on the current stream.

        A kernel that returns a number of seconds is made to last them, where throttled.
        """

    @abstractmethod
    def copy(self, pairs: Sequence[Pair], label: str) -> None:
        """Copy on the current stream; host tensors are pinned."""

    @abstractmethod
    def copy_rows(
        self, rows: Sequence[Pair], count: torch.Tensor, whole: Sequence[Pair], label: str
    ) -> None:
        """Copy the first ``count[0]`` rows of some tensors, and others whole.

        ``count``, int64 [1], is on the sources' side. Rows after these need not be copied.
        """

    @abstractmethod
    def host(self, function: Callable[[], Any], label: str, seconds: float) -> Any:
        """Do work on the CPU now, on the calling thread, and return what it returns."""

    @abstractmethod
    def host_callback(self, function: Callable[[], None], label: str) -> None:
        """Let the current stream call a function on the host when it comes to it."""

    @abstractmethod
    def take_error(self) -> tuple[str, BaseException] | None:
        """Wait for all streams; label and exception of what failed on one since last asked."""

    @abstractmethod
    def start_recording(self) -> None:
        """Record spans and traffic from now on."""

    @abstractmethod
    def take_recording(self) -> tuple[list[Span], Traffic]:
        """What was recorded; the streams are idle."""

    @abstractmethod
    def experts_kernel(self, kind: KernelKind) -> Kernel:
        """What computes experts on it, called as ``coxmoe::experts_subset_``, by ``launch``."""

    def workspace(self, size: int) -> AbstractContextManager[None]:
        """Memory that a kernel takes while it is started; here its own allocations are that."""
        return contextlib.nullcontext()

    def pinned(self, like: torch.Tensor) -> torch.Tensor:
        """Pinned host memory of a tensor's sizes, strides and dtype."""
        with torch.inference_mode(False):
            return torch.empty_strided(
                like.size(), like.stride(), dtype=like.dtype, pin_memory=True
            )

    def synchronize(self) -> None:
        """Wait for all streams."""
        torch.accelerator.synchronize(self.device)


class CudaAccelerator(Accelerator):
    """An NVIDIA GPU. Kernels are asynchronous of themselves; nothing is throttled.

    It has never run: there was no GPU where it was written. Its graphs are checked with fake
    tensors (tests/test_cuda_graphs.py).
    """

    def __init__(self) -> None:
        self.device = self.kernel_device = torch.device("cuda", torch.cuda.current_device())
        self._spans: list[tuple[str, Stream, torch.cuda.Event, torch.cuda.Event]] = []
        self._callbacks: list[Any] = []
        self._error: tuple[str, BaseException] | None = None
        self._recording = False

    def experts_kernel(self, kind: KernelKind) -> Kernel:
        """See :meth:`Accelerator.experts_kernel`."""
        if kind == "torch":
            return grouped_experts_subset_
        return triton_kernel("experts_subset_")

    def call(
        self,
        kernel: Kernel,
        arguments: Sequence[Any],
        values: Sequence[torch.Tensor],
        label: str,
        seconds: float,
    ) -> list[torch.Tensor]:
        """See :meth:`Accelerator.call`."""
        return list(self._timed(lambda: kernel(*arguments), label))

    def launch(
        self, kernel: Kernel, arguments: Sequence[Any], label: str, seconds: float = 0.0
    ) -> None:
        """See :meth:`Accelerator.launch`."""
        self._timed(lambda: kernel(*arguments), label)

    def copy(self, pairs: Sequence[Pair], label: str) -> None:
        """See :meth:`Accelerator.copy`."""

        def run() -> None:
            for destination, source in pairs:
                destination.copy_(source, non_blocking=True)

        self._timed(run, label)

    def copy_rows(
        self, rows: Sequence[Pair], count: torch.Tensor, whole: Sequence[Pair], label: str
    ) -> None:
        """See :meth:`Accelerator.copy_rows`; a count on the device is read by a kernel there."""
        if count.device.type == "cpu":
            known = int(count[0])
            self.copy([(d[:known], s[:known]) for d, s in rows] + list(whole), label)
            return
        from coxcompile.runtime.kernels.gpu.row_copies import copy_rows_

        def run() -> None:
            for destination, source in rows:
                copy_rows_(destination, source, count)
            for destination, source in whole:
                destination.copy_(source, non_blocking=True)

        self._timed(run, label)

    def host(self, function: Callable[[], Any], label: str, seconds: float) -> Any:
        """See :meth:`Accelerator.host`."""
        return function()

    def host_callback(self, function: Callable[[], None], label: str) -> None:
        """By cudaLaunchHostFunc of the runtime library that torch has loaded."""
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

        def call(_: object) -> None:
            try:
                function()
            except BaseException as error:  # none may leave a C callback
                self._error = self._error or (label, error)

        callback = kind(call)
        self._callbacks.append(callback)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        failed = _cuda_runtime().cudaLaunchHostFunc(stream, callback, None)
        if failed:
            raise RuntimeError(f"cudaLaunchHostFunc failed with error {failed}")

    def take_error(self) -> tuple[str, BaseException] | None:
        """See :meth:`Accelerator.take_error`; errors of kernels are CUDA's own, without a label."""
        self.synchronize()
        self._callbacks.clear()
        error, self._error = self._error, None
        return error

    def start_recording(self) -> None:
        """See :meth:`Accelerator.start_recording`."""
        self._spans.clear()
        self._recording = True
        torch.cuda.reset_peak_memory_stats()

    def take_recording(self) -> tuple[list[Span], Traffic]:
        """See :meth:`Accelerator.take_recording`. Bytes copied are not counted: they are 0."""
        self._recording = False
        spans = []
        for label, stream, begin, end in self._spans:
            started = self._spans[0][2].elapsed_time(begin) / 1e3
            spans.append(Span(label, stream, started, started + begin.elapsed_time(end) / 1e3))
        return spans, Traffic(0, 0, torch.cuda.max_memory_allocated())

    def _timed(self, function: Callable[[], Any], label: str) -> Any:
        if not self._recording:
            return function()
        timed_event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        begin, end = (timed_event(enable_timing=True) for _ in range(2))
        begin.record()
        result = function()
        end.record()
        current = torch.accelerator.current_stream()
        stream = next(name for name, known in self.streams.items() if known == current)
        self._spans.append((label, stream, begin, end))
        return result


@functools.cache
def _cuda_runtime() -> Any:
    return ctypes.CDLL(f"libcudart.so.{str(torch.version.cuda).split('.')[0]}")
