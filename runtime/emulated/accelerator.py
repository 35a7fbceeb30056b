"""The emulated accelerator as the executor's accelerator."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from coxcompile.hardware import HardwareSpec
from coxcompile.runtime import emulated
from coxcompile.runtime.accelerator import (
    Accelerator,
    Kernel,
    KernelKind,
    Pair,
    Span,
    Traffic,
)
from coxcompile.runtime.instructions import Stream
from coxcompile.runtime.kernels import triton_kernel


class EmulatedAccelerator(Accelerator):
    """Kernels are compiled for the CPU and run whole on a stream's thread, over aliased memory.

    Args:
        memory_bytes: the hard limit.
        hardware: nodes and copies are made to last as long as its GPU, CPU and links would take;
            None: they take what they take.
    """

    def __init__(self, memory_bytes: int, hardware: HardwareSpec | None = None) -> None:
        self.device = emulated.load()
        self.kernel_device = torch.device("cpu")
        self.throttled = hardware is not None
        emulated.configure(
            memory_bytes=memory_bytes,
            host_to_device=hardware.host_to_device if hardware else None,
            device_to_host=hardware.device_to_host if hardware else None,
        )

    def experts_kernel(self, kind: KernelKind) -> Kernel:
        """See :meth:`Accelerator.experts_kernel`; "triton" is compiled for sm_90, interpreted."""
        if kind == "torch":
            return torch.ops.coxmoe.experts_subset_
        kernel = triton_kernel("experts_subset_")

        def interpreted(*arguments: Any, **options: Any) -> None:
            from coxcompile.runtime.emulated.triton_driver import triton_target

            with triton_target("sm_90"):
                kernel(*arguments, **options)

        return interpreted

    @contextlib.contextmanager
    def workspace(self, size: int) -> Iterator[None]:
        """See :meth:`Accelerator.workspace`: its bytes count, as a caching allocator's would."""
        reserved = torch.empty(size, dtype=torch.uint8, device=self.device)
        yield
        del reserved

    def call(
        self,
        kernel: Kernel,
        arguments: Sequence[Any],
        values: Sequence[torch.Tensor],
        label: str,
        seconds: float,
    ) -> list[torch.Tensor]:
        """See :meth:`Accelerator.call`."""
        results = [
            torch.empty_strided(v.size(), v.stride(), dtype=v.dtype, device=self.device)
            for v in values
        ]
        outputs = [emulated.borrow(result) for result in results]

        def run(*inputs: Any) -> None:
            for output, value in zip(outputs, kernel(*inputs), strict=True):
                _distinct(output).copy_(_distinct(value))

        self.launch(run, arguments, label, seconds)
        return results

    def launch(
        self, kernel: Kernel, arguments: Sequence[Any], label: str, seconds: float = 0.0
    ) -> None:
        """See :meth:`Accelerator.launch`."""
        inputs = [
            emulated.borrow(a) if isinstance(a, torch.Tensor) and a.device == self.device else a
            for a in arguments
        ]

        def run() -> float | None:
            # A thread has a mode of its own; in this one, all tensors may be written to.
            with torch.inference_mode():
                taken = kernel(*inputs)
            return taken if self.throttled and isinstance(taken, float) else None

        emulated.enqueue(run, label, seconds if self.throttled else 0.0)

    def copy(self, pairs: Sequence[Pair], label: str) -> None:
        """See :meth:`Accelerator.copy`."""
        if len(pairs) == 1:
            with emulated.labelled(label):
                pairs[0][0].copy_(pairs[0][1], non_blocking=True)
        else:  # one operation, with one latency
            self.copy_rows([], torch.zeros(1, dtype=torch.int64), pairs, label)

    def copy_rows(
        self, rows: Sequence[Pair], count: torch.Tensor, whole: Sequence[Pair], label: str
    ) -> None:
        """See :meth:`Accelerator.copy_rows`."""
        destinations, sources = [pair[0] for pair in rows], [pair[1] for pair in rows]
        emulated.copy_rows(destinations, sources, count, label, whole)

    def host(self, function: Callable[[], Any], label: str, seconds: float) -> Any:
        """See :meth:`Accelerator.host`."""
        result: list[Any] = []
        with emulated.labelled(label):
            emulated.run_on_host(
                lambda: result.append(function()), seconds if self.throttled else 0.0
            )
        return result[0]

    def host_callback(self, function: Callable[[], None], label: str) -> None:
        """See :meth:`Accelerator.host_callback`."""
        emulated.host_function(function, label)

    def take_error(self) -> tuple[str, BaseException] | None:
        """See :meth:`Accelerator.take_error`."""
        return emulated.take_error()

    def start_recording(self) -> None:
        """See :meth:`Accelerator.start_recording`."""
        emulated.reset_statistics()
        emulated.start_timeline()

    def take_recording(self) -> tuple[list[Span], Traffic]:
        """See :meth:`Accelerator.take_recording`."""
        names: dict[int, Stream] = {stream.stream_id: name for name, stream in self.streams.items()}
        spans = [
            Span(span.label, names.get(span.stream_id, "host"), span.begin, span.end)
            for span in emulated.take_timeline()
        ]
        counted = emulated.statistics()
        return spans, Traffic(
            counted.bytes_host_to_device, counted.bytes_device_to_host, counted.peak_bytes
        )


def _distinct(tensor: torch.Tensor) -> torch.Tensor:
    """Without the repetitions of an expanded tensor, which are one element in memory."""
    for dimension, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dimension] > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor
