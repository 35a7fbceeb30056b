"""What the device counts, and the timeline that it records on demand."""

from dataclasses import dataclass
from typing import Literal, cast

from coxcompile.runtime.emulated.extension import loaded_extension

Kind = Literal["kernel", "host_function", "host_to_device", "device_to_host", "on_device", "host"]


@dataclass(frozen=True)
class Statistics:
    """Of what has run: synchronize first to have it all.

    Attributes:
        bytes_host_to_device: copied since reset_statistics.
        bytes_device_to_host: likewise.
        launches: kernels (``enqueue``) run since then.
        allocated_bytes: allocated and not freed.
        peak_bytes: the most of those at any time since reset_statistics.
    """

    bytes_host_to_device: int
    bytes_device_to_host: int
    launches: int
    allocated_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Span:
    """One operation on the ideal clock.

    Attributes:
        label: of the operation.
        stream_id: that of the ``torch.Stream``; -1 for work on the host (``run_on_host``).
        kind: what it was.
        begin: seconds, as ``time.perf_counter()`` shows them. A copy begins when it has the link.
        end: likewise.
    """

    label: str
    stream_id: int
    kind: Kind
    begin: float
    end: float


def statistics() -> Statistics:
    """The counts by now."""
    return Statistics(*loaded_extension().statistics())


def reset_statistics() -> None:
    """Start counting from 0 again, and the peak from what is allocated now."""
    loaded_extension().reset_statistics()


def start_timeline() -> None:
    """Record operations from now on, and forget those recorded."""
    loaded_extension().start_timeline()


def take_timeline() -> list[Span]:
    """The operations recorded, in the order in which they ended; stops recording."""
    return [
        Span(label, stream_id, cast(Kind, kind), begin, end)
        for label, stream_id, kind, begin, end in loaded_extension().take_timeline()
    ]
