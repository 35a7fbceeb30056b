"""What one recorded call of a co-execution graph took."""

from dataclasses import dataclass

from coxcompile.planner.timeline import TimelineTask
from coxcompile.runtime.accelerator import Span, Traffic


@dataclass(frozen=True)
class Execution:
    """Measured on the machine it ran on; on the emulated accelerator, of an emulated machine.

    Attributes:
        begin, end: of the call, in seconds of ``time.perf_counter``.
        spans: of each node that took time.
        traffic: bytes over the link, and the peak on the accelerator.
    """

    begin: float
    end: float
    spans: tuple[Span, ...]
    traffic: Traffic

    @property
    def seconds(self) -> float:
        """Of the call, without what was copied before it began."""
        return self.end - self.begin

    def timeline(self) -> tuple[TimelineTask, ...]:
        """The spans for a Chrome trace; "weights" is its own row beside "host_to_device"."""
        return tuple(
            TimelineTask(
                name=span.node,
                resource=_RESOURCES.get(span.stream, span.stream),
                step=0,
                layer=None,
                micro_batch=None,
                start=span.begin - self.begin,
                end=span.end - self.begin,
            )
            for span in self.spans
        )


_RESOURCES = {"host": "cpu"}
