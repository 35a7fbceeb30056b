"""Times the CPU's kernels: our own experts, PyTorch's attention."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import coxcompile.ops  # noqa: F401  (registers the op)
from coxcompile.measurement.attention import causal_attention, decoding_head_seconds
from coxcompile.measurement.probe import Sample, seconds_of
from coxcompile.measurement.roofline import measure_roofline


@dataclass(frozen=True)
class ExpertLayer:
    """The sizes of one layer's routed experts."""

    experts: int
    top_k: int
    hidden: int
    intermediate: int


class CpuProbe:
    """All cores that PyTorch uses, in one dtype.

    The experts timed are of DeepSeek-V2-Lite's size, which lies between Qwen3-30B-A3B's and
    Mixtral's; 24 of them (415 MB in bfloat16) no cache holds.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        layer: ExpertLayer = ExpertLayer(experts=24, top_k=6, hidden=2048, intermediate=1408),
    ) -> None:
        self.dtype = dtype
        self.layer = layer

    @torch.inference_mode()
    def experts(self, rows: int) -> Sample:
        """Every expert gets exactly ``rows`` tokens."""
        layer, (gate_up, down) = self.layer, self._weights
        tokens = layer.experts * rows // layer.top_k
        expert_ids = torch.arange(tokens * layer.top_k).view(tokens, -1) % layer.experts
        hidden_states = torch.randn(tokens, layer.hidden).to(self.dtype)
        routing_weights = torch.full(expert_ids.shape, 1 / layer.top_k).to(self.dtype)
        roofline = measure_roofline(self.dtype)
        seconds = seconds_of(
            lambda: torch.ops.coxmoe.coalesced_experts(
                hidden_states, expert_ids, routing_weights, gate_up, down
            )
        )
        return Sample(
            flops=2.0 * rows * (gate_up.numel() + down.numel()),
            bytes_read=gate_up.nbytes + down.nbytes + hidden_states.nbytes,
            seconds=seconds,
            roofline=roofline,
        )

    @torch.inference_mode()
    def attention(self) -> Sample:
        """See :func:`causal_attention`."""
        return causal_attention(
            self.dtype, torch.device("cpu"), lambda: measure_roofline(self.dtype), seconds_of
        )

    @torch.inference_mode()
    def attention_head_seconds(self) -> float:
        """See :func:`decoding_head_seconds`."""
        return decoding_head_seconds(self.dtype, torch.device("cpu"), seconds_of)

    @torch.inference_mode()
    def launch_seconds(self) -> float:
        """The experts op on one expert of 16 x 16, the mean of 200 calls."""
        hidden_states = torch.zeros(1, 16, dtype=self.dtype)
        gate_up, down = (torch.zeros(1, rows, 16, dtype=self.dtype) for rows in (32, 16))
        expert_ids = torch.zeros(1, 1, dtype=torch.int64)
        routing_weights = torch.ones(1, 1, dtype=self.dtype)

        def calls() -> None:
            for _ in range(200):
                torch.ops.coxmoe.coalesced_experts(
                    hidden_states, expert_ids, routing_weights, gate_up, down
                )

        return seconds_of(calls) / 200

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        layer = self.layer
        return (
            stacked_weights(layer.experts, 2 * layer.intermediate, layer.hidden, self.dtype),
            stacked_weights(layer.experts, layer.hidden, layer.intermediate, self.dtype),
        )


def stacked_weights(experts: int, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """Weights [experts, outputs, inputs] that keep activations at unit scale."""
    weight = torch.empty(experts, outputs, inputs, dtype=dtype)
    # One expert's numbers, shifted for the others: drawing them all takes longer than timing.
    drawn = (torch.randn(outputs, inputs) * inputs**-0.5).to(dtype)
    for expert in range(experts):
        weight[expert] = drawn.roll(131 * expert, 1)
    return weight
