"""Random experts as the GPU kernels take them, and what they compute, in float64.

For checks and timings. Nothing is zero: zeros hide what is not written, and make GPUs faster.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from coxcompile.runtime.kernels.gating import Gating
from coxcompile.runtime.kernels.gpu.projections import Format
from coxcompile.runtime.kernels.gpu.weights import ExpertWeights

WEIGHTS = ("bfloat16", "float16", "float32", "float8", "int8", "int4")
"""What weights can be stored as, named as in the table of configurations."""

_DENSE = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_FORMATS: dict[str, Format] = {"float8": "float8", "int8": "int8", "int4": "int4"}
_DEVIATION = {"float8": 64.0, "int8": 73.6, "int4": 4.6}
"""Of the stored numbers, before scaling."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda gate: functional.gelu(gate, approximate="tanh"),
    "relu": functional.relu,
}
SLOPE, LIMIT = 1.702, 1.25
"""GPT-OSS' alpha, and a limit that random numbers reach."""


@dataclass(frozen=True, kw_only=True)
class ExpertForm:
    """How experts are stored, and what lies between their projections; see :mod:`coxcompile.ops`.

    Attributes:
        weights: one of :data:`WEIGHTS`; tokens are bfloat16 where these are quantised.
        groups: of inputs that have a scale each, if quantised.
    """

    weights: str = "bfloat16"
    activation: str = "silu"
    gate_layout: str = "concatenated"
    transposed: bool = False
    bias: bool = False
    groups: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the tokens."""
        return _DENSE.get(self.weights, torch.bfloat16)

    @property
    def gating(self) -> Gating:
        """As the kernels take it."""
        return Gating("random experts", self.activation, self.gate_layout, SLOPE, LIMIT)

    def activated(self, projected: Tensor) -> Tensor:
        """Of gate and up [T, 2 I]: [T, I], in their dtype."""
        if self.gate_layout == "interleaved":
            gate, up = projected[:, ::2], projected[:, 1::2]
        else:
            gate, up = projected.chunk(2, dim=1)
        if self.activation != "swigluoai":
            return _ACTIVATIONS[self.activation](gate) * up
        gate = gate.clamp(max=LIMIT)
        return (up.clamp(-LIMIT, LIMIT) + 1) * gate * torch.sigmoid(SLOPE * gate)


@dataclass(frozen=True)
class Stack:
    """One projection of all experts; shapes as ``ExpertWeights.from_stacked`` takes them."""

    stored: Tensor
    bias: Tensor | None
    scales: Tensor | None

    def exact(self, expert: int, form: ExpertForm, tokens: Tensor) -> Tensor:
        """W x + b of float64 tokens [T, inputs]: [T, outputs]."""
        stored = self.stored[expert]
        if form.weights == "int4":
            stored = torch.stack((stored & 15, stored >> 4), dim=-1).flatten(1)
        matrix = stored.double() - (8 if form.weights == "int4" else 0)
        if self.scales is not None:
            scales = self.scales[expert].double()
            grouped = matrix.reshape(*scales.shape, -1)
            matrix = (grouped * scales[..., None]).flatten(1)
        product = tokens @ (matrix if form.transposed else matrix.T)
        return product if self.bias is None else product + self.bias[expert].double()


class RandomExperts:
    """Experts of a form and size, drawn anew.

    Attributes:
        form: theirs.
        hidden: H.
        intermediate: I.
        gate_up: of 2 I outputs.
        down: of H outputs.
    """

    def __init__(
        self, form: ExpertForm, experts: int, hidden: int, intermediate: int, device: torch.device
    ) -> None:
        self.form, self.hidden, self.intermediate = form, hidden, intermediate
        self.gate_up = _draw(form, (experts, 2 * intermediate, hidden), device)
        self.down = _draw(form, (experts, hidden, intermediate), device)

    def weights(self, expert_slots: Tensor | None = None) -> ExpertWeights:
        """As the kernels take them; see ``ExpertWeights.from_stacked``."""
        gate_up, down = self.gate_up, self.down
        return ExpertWeights.from_stacked(
            *(gate_up.stored, down.stored, gate_up.bias, down.bias, gate_up.scales, down.scales),
            expert_slots=expert_slots,
            transposed=self.form.transposed,
            format=_FORMATS.get(self.form.weights, "dense"),
        )

    def exact_activated(self, hidden_states: Tensor, expert_ids: Tensor) -> Tensor:
        """Each choice's gated projection, [T * top_k, I] float64; 0 for choices of nobody."""
        tokens = hidden_states.repeat_interleave(expert_ids.shape[1], dim=0)
        return self._by_expert(self.gate_up, tokens, expert_ids, self.intermediate, gated=True)

    def exact_contributions(
        self, activated: Tensor, expert_ids: Tensor, routing_weights: Tensor
    ) -> Tensor:
        """What each choice adds to its token, [T * top_k, H] float64; activated as above."""
        outputs = self._by_expert(self.down, activated, expert_ids, self.hidden, gated=False)
        return outputs * routing_weights.double().flatten()[:, None]

    def exact(self, hidden_states: Tensor, expert_ids: Tensor, routing_weights: Tensor) -> Tensor:
        """The whole layer, [T, H] float64."""
        activated = self.exact_activated(hidden_states, expert_ids)
        contributions = self.exact_contributions(activated, expert_ids, routing_weights)
        return contributions.view(*expert_ids.shape, self.hidden).sum(1)

    def _by_expert(
        self, stack: Stack, tokens: Tensor, expert_ids: Tensor, outputs: int, *, gated: bool
    ) -> Tensor:
        choices = expert_ids.flatten()
        result = tokens.new_zeros(len(choices), outputs, dtype=torch.float64)
        for expert in range(len(stack.stored)):
            chosen = choices == expert
            projected = stack.exact(expert, self.form, tokens[chosen].double())
            result[chosen] = self.form.activated(projected) if gated else projected
        return result


def _draw(form: ExpertForm, shape: tuple[int, int, int], device: torch.device) -> Stack:
    experts, outputs, inputs = shape
    bias = torch.randn(experts, outputs, device=device) * 0.3 if form.bias else None
    if form.weights in _DENSE:
        size = (experts, inputs, outputs) if form.transposed else shape
        stored = torch.empty(size, dtype=form.dtype, device=device)
        stored.normal_(std=inputs**-0.5)
        return Stack(stored, None if bias is None else bias.to(form.dtype), None)
    if form.weights == "int4":
        packed = (experts, outputs, inputs // 2)
        stored = torch.randint(0, 256, packed, dtype=torch.uint8, device=device)
    elif form.weights == "int8":
        stored = torch.randint(-127, 128, shape, dtype=torch.int8, device=device)
    else:
        numbers = torch.empty(shape, dtype=torch.bfloat16, device=device)
        numbers.normal_(std=_DEVIATION["float8"])
        stored = numbers.clamp_(-448, 448).to(torch.float8_e4m3fn)
    scales = torch.rand(experts, outputs, form.groups, device=device) + 0.5
    scales *= inputs**-0.5 / _DEVIATION[form.weights]
    return Stack(stored, None if bias is None else bias.to(form.dtype), scales)
