"""Experts for the GPU kernels: random weights in every form, and the float64 numbers they mean."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from coxcompile.runtime.kernels.gating import Gating
from coxcompile.runtime.kernels.gpu.configurations import ExpertConfiguration, ProductConfiguration
from coxcompile.runtime.kernels.gpu.projections import Format
from coxcompile.runtime.kernels.gpu.weights import ExpertWeights

LARGEST = {"int8": 127, "int4": 7, "float8": 448}


@dataclass(frozen=True)
class Stored:
    """Matrices [experts, outputs, inputs] as stored, their scales, and what they mean."""

    stored: Tensor
    scales: Tensor | None
    meaning: Tensor


def store(matrices: Tensor, format: Format, groups: int) -> Stored:
    """Quantise float32 matrices, the inputs of a row in so many groups."""
    if format == "dense":
        return Stored(matrices, None, matrices.double())
    experts, outputs, inputs = matrices.shape
    grouped = matrices.float().view(experts, outputs, groups, -1)
    scales = grouped.abs().amax(-1, keepdim=True) / LARGEST[format]
    numbers = grouped / scales
    if format == "float8":
        numbers = numbers.to(torch.float8_e4m3fn)
        stored = numbers.view(experts, outputs, inputs)
    else:
        numbers = numbers.round()
        whole = numbers.view(experts, outputs, inputs)
        if format == "int8":
            stored = whole.to(torch.int8)
        else:
            halves = (whole + 8).to(torch.uint8)
            stored = halves[..., ::2] | (halves[..., 1::2] << 4)
    meaning = (numbers.double() * scales.double()).view(experts, outputs, inputs)
    return Stored(stored, scales.squeeze(-1), meaning)


class ExpertsCase:
    """Random experts with what reads them; sizes are odd unless a test needs otherwise.

    Attributes:
        tensors: gate_up, down, gate_up_bias, down_bias, gate_up_scales, down_scales as stored.
    """

    def __init__(
        self,
        *,
        experts: int = 5,
        hidden: int = 40,
        intermediate: int = 24,
        dtype: torch.dtype = torch.bfloat16,
        format: Format = "dense",
        groups: int = 1,
        activation: str = "silu",
        gate_layout: str = "concatenated",
        transposed: bool = False,
        bias: bool = False,
        seed: int = 0,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.experts, self.hidden, self.intermediate = experts, hidden, intermediate
        self.dtype, self.format, self.transposed = dtype, format, transposed
        limit = 1.0 if activation == "swigluoai" else None
        self.gating = Gating("case", activation, gate_layout, 1.7, limit)
        gate_up = self.random(experts, 2 * intermediate, hidden) / hidden**0.5
        down = self.random(experts, hidden, intermediate) / intermediate**0.5
        self.gate_up = store(gate_up, format, groups)
        self.down = store(down, format, groups)
        biases = (self.random(experts, 2 * intermediate), self.random(experts, hidden))
        self.biases = biases if bias else (None, None)
        matrices = [
            part.stored.mT.contiguous() if transposed else part.stored
            for part in (self.gate_up, self.down)
        ]
        self.tensors = (*matrices, *self.biases, self.gate_up.scales, self.down.scales)

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normally distributed, rounded to the case's dtype."""
        return torch.randn(shape, generator=self.generator).to(dtype or self.dtype)

    def routing(self, tokens: int, top_k: int) -> tuple[Tensor, Tensor]:
        """Distinct experts for each token, and weights."""
        scores = torch.rand(tokens, self.experts, generator=self.generator)
        weights = torch.rand(tokens, top_k, generator=self.generator)
        return scores.topk(top_k).indices, weights

    def weights(self, expert_slots: Tensor | None = None) -> ExpertWeights:
        """The table of addresses; to be called where kernels can run."""
        return ExpertWeights.from_stacked(
            *self.tensors,
            expert_slots=expert_slots,
            transposed=self.transposed,
            format=self.format,
        )

    def activated(self, inputs: Tensor, experts: Tensor) -> Tensor:
        """Row i's gated projection by expert ``experts[i]``, in float64."""
        projected = torch.einsum("ph,pnh->pn", inputs.double(), self.gate_up.meaning[experts])
        if self.biases[0] is not None:
            projected += self.biases[0].double()[experts]
        if self.gating.gate_layout == "interleaved":
            gate, up = projected[:, ::2], projected[:, 1::2]
        else:
            gate, up = projected.chunk(2, -1)
        return self.gating._activate(gate, up)

    def outputs(self, activated: Tensor, experts: Tensor) -> Tensor:
        """Row i's second projection by expert ``experts[i]``, in float64."""
        result = torch.einsum("pi,phi->ph", activated.double(), self.down.meaning[experts])
        return result if self.biases[1] is None else result + self.biases[1].double()[experts]


def configuration(block_tokens: int = 16, **product: Any) -> ExpertConfiguration:
    """Small tiles, of which several are needed, for both projections."""
    fields = {"block_outputs": 16, "block_inputs": 16, "warps": 4, "stages": 3, **product}
    both = ProductConfiguration(**fields)
    return ExpertConfiguration(block_tokens=block_tokens, gate_up=both, down=both)
