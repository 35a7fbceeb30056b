"""Work for the device's streams, and for the CPU beside it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from coxcompile.runtime.emulated.extension import CopyPair, Work, loaded_extension


def enqueue(function: Work, label: str, seconds: float = 0.0) -> None:
    """Enqueue a kernel on the current stream: a function that its thread calls under the GIL.

    The kernel takes ``seconds`` from its begin, or as many as the function returns, or as long as
    the function ran, whatever is longer. The rest is slept, without the GIL. An exception is kept
    until the next synchronisation, which raises it (see ``take_error``).

    Args:
        function: must not synchronise with the device. It computes on host tensors; ``as_host``
            gives those of the device's.
        label: in timelines, errors and for ``delay_label``.
        seconds: on the ideal clock, to which sleeping too long adds nothing.
    """
    loaded_extension().enqueue(function, label, seconds)


def host_function(function: Work, label: str, seconds: float = 0.0) -> None:
    """Enqueue host work on the current stream, as ``enqueue``, but counted as no launch."""
    loaded_extension().host_function(function, label, seconds)


def run_on_host(function: Work, seconds: float = 0.0) -> None:
    """Call the function on the calling thread, then sleep until ``seconds`` since its begin.

    The emulated CPU: ``seconds``, or what the function returns, is what it would take. An exception
    of the function is raised at once. In timelines it has the label of ``labelled``.
    """
    loaded_extension().run_on_host(function, seconds)


def as_host(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor of the same bytes, sizes and strides, which keeps them allocated.

    Reading or writing it waits for nothing: it is for functions enqueued on the right stream.
    """
    return loaded_extension().as_host(tensor)


def borrow(tensor: torch.Tensor) -> torch.Tensor:
    """As ``as_host``, without keeping the bytes allocated: what a kernel on a GPU is given.

    If the tensor is freed before the kernel runs, the kernel reads poison.
    """
    return loaded_extension().borrow(tensor)


def copy_rows(
    destinations: Sequence[torch.Tensor],
    sources: Sequence[torch.Tensor],
    count: torch.Tensor,
    label: str,
    whole: Sequence[CopyPair] = (),
) -> None:
    """Copy the first ``count[0]`` rows of each source, between host and device.

    One asynchronous operation on the current stream, with one latency; only the bytes really copied
    count and take time.

    Args:
        destinations: as many as sources, of their shapes and dtypes. Later rows are left as they
            are.
        sources: [rows, ...] each, all on the device or all on the host.
        count: int64 [1] on the sources' side, read when the copy runs; at most the fewest rows of
            a source.
        label: of the operation.
        whole: pairs (destination, source) that the operation copies whole.

    Raises:
        ValueError: the arguments contradict each other. A count out of range is an error of the
            operation, raised by the next synchronisation.
    """
    if len(destinations) != len(sources):
        raise ValueError(
            f"copy_rows: there are {len(destinations)} destinations, but must be {len(sources)}, "
            "as many as sources"
        )
    pairs = list(zip(destinations, sources, strict=True))
    loaded_extension().copy_rows(pairs, count, list(whole), label)


@contextmanager
def labelled(label: str) -> Iterator[None]:
    """Give copies and host work of the calling thread this label, instead of "copy"."""
    before = loaded_extension().exchange_label(label)
    try:
        yield
    finally:
        loaded_extension().exchange_label(before)


def take_error() -> tuple[str, BaseException] | None:
    """The label and exception of the first operation that failed since the last call, if any.

    Waits for all streams. Operations that had not begun when the other failed were skipped; from
    now on the device works again.
    """
    return loaded_extension().take_error()


def empty_cache() -> None:
    """Wait for all streams, then give unused memory back to the operating system."""
    loaded_extension().empty_cache()
