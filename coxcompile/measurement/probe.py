"""What calibration asks of a processor: the CPU and the GPU each have a probe that answers."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from coxcompile.measurement.roofline import Roofline


@dataclass(frozen=True)
class Sample:
    """One timed call, and what the machine could do right before it.

    Attributes:
        flops: a multiply-add counted as two.
        bytes_read: weights and activations, each once.
        seconds: how long the call took.
        roofline: measured right before.
    """

    flops: float
    bytes_read: float
    seconds: float
    roofline: Roofline

    @property
    def share_of_peak(self) -> float:
        """Of the GEMM peak."""
        return self.flops / self.seconds / self.roofline.gemm_flops_per_second

    @property
    def share_of_bandwidth(self) -> float:
        """Of the read bandwidth."""
        return self.bytes_read / self.seconds / self.roofline.read_bytes_per_second


class Probe(Protocol):
    """A processor that can be timed."""

    def experts(self, rows: int) -> Sample:
        """Experts of ``rows`` tokens each, more of them than caches hold."""
        ...

    def attention(self) -> Sample:
        """Causal attention of prefill; its flops are those of the unmasked half."""
        ...

    def attention_head_seconds(self) -> float:
        """A KV head of a sequence in a decoding step with next to nothing cached."""
        ...

    def launch_seconds(self) -> float:
        """An operation with next to nothing to do."""
        ...


def seconds_of(call: Callable[[], object]) -> float:
    """One call on the host's clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
