"""Times a GPU and its link to the host with device events.

Written against torch.accelerator and torch.Event; never run on a GPU yet, for want of one.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from coxcompile.hardware import Link
from coxcompile.measurement.attention import causal_attention, decoding_head_seconds
from coxcompile.measurement.probe import Sample
from coxcompile.measurement.roofline import Roofline

REPEATS = 5
GEMM_SIZE = 8192
READ_BYTES = 2**31
LINK_BYTES = 2**28


class GpuProbe:
    """The current accelerator, in one dtype.

    There are no expert kernels for GPUs yet: a batched product with weights of ``weight_shape``
    [experts, outputs, inputs] (1 GiB in bfloat16, which no cache holds) stands for them.
    """

    weight_shape = (64, 4096, 2048)

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device

    @torch.inference_mode()
    def experts(self, rows: int) -> Sample:
        """Every expert gets ``rows`` tokens."""
        experts, _, inputs = self.weight_shape
        hidden_states = torch.randn(experts, rows, inputs, dtype=self.dtype, device=self.device)
        roofline = self._roofline()
        seconds = self._seconds_of(lambda: torch.bmm(hidden_states, self._weight.mT))
        return Sample(
            flops=2.0 * rows * self._weight.numel(),
            bytes_read=float(self._weight.nbytes + hidden_states.nbytes),
            seconds=seconds,
            roofline=roofline,
        )

    @torch.inference_mode()
    def attention(self) -> Sample:
        """See :func:`causal_attention`."""
        return causal_attention(self.dtype, self.device, self._roofline, self._seconds_of)

    @torch.inference_mode()
    def attention_head_seconds(self) -> float:
        """See :func:`decoding_head_seconds`."""
        return decoding_head_seconds(self.dtype, self.device, self._seconds_of)

    def launch_seconds(self) -> float:
        """Adding to one number, the mean of 1000 in a row: launches that follow each other."""
        number = torch.zeros(1, device=self.device)

        def additions() -> None:
            for _ in range(1000):
                number.add_(1)

        return self._seconds_of(additions) / 1000

    def links(self) -> tuple[Link, Link]:
        """(to the device, from it), pinned memory; latency: of a copy of one byte."""
        host = torch.empty(LINK_BYTES, dtype=torch.uint8, pin_memory=True)
        there = torch.empty(LINK_BYTES, dtype=torch.uint8, device=self.device)
        return self._link(there, host), self._link(host, there)

    def _link(self, target: Tensor, source: Tensor) -> Link:
        latency, seconds = (
            min(
                self._seconds_of(lambda: target[:size].copy_(source[:size], non_blocking=True))  # noqa: B023
                for _ in range(REPEATS)
            )
            for size in (1, LINK_BYTES)
        )
        return Link(bytes_per_second=LINK_BYTES / (seconds - latency), latency_seconds=latency)

    def _roofline(self) -> Roofline:
        left, right, buffer = self._operands
        return Roofline(
            gemm_flops_per_second=2 * GEMM_SIZE**3 / self._best(lambda: left @ right),
            read_bytes_per_second=READ_BYTES / self._best(buffer.amax),
        )

    def _best(self, call: Callable[[], object]) -> float:
        return min(self._seconds_of(call) for _ in range(REPEATS))

    def _seconds_of(self, call: Callable[[], object]) -> float:
        start, end = (torch.Event(self.device, enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    @cached_property
    def _operands(self) -> tuple[Tensor, Tensor, Tensor]:
        left, right = (
            torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=self.dtype, device=self.device)
            for _ in range(2)
        )
        return left, right, torch.ones(READ_BYTES // 4, device=self.device)

    @cached_property
    def _weight(self) -> Tensor:
        return torch.randn(self.weight_shape, dtype=self.dtype, device=self.device)
