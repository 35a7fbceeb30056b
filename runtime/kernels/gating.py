"""What lies between an expert's two projections, as plain PyTorch calls on any device."""

from dataclasses import dataclass

import torch
from torch.nn import functional

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "swigluoai")
_GATE_LAYOUTS = ("concatenated", "interleaved")


@dataclass(frozen=True)
class Gating:
    """Layout and nonlinearity of the gate and up outputs; values as in :mod:`coxcompile.ops`.

    Raises:
        ValueError: ``activation`` or ``gate_layout`` is unknown; ``op`` is who says so.
    """

    op: str
    activation: str
    gate_layout: str
    alpha: float
    limit: float | None

    def __post_init__(self) -> None:
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"{self.op}: activation is {self.activation!r}, but must be one of "
                f"{', '.join(_ACTIVATIONS)}"
            )
        if self.gate_layout not in _GATE_LAYOUTS:
            raise ValueError(
                f"{self.op}: gate_layout is {self.gate_layout!r}, but must be 'concatenated' or "
                "'interleaved'"
            )

    def __call__(self, projected: torch.Tensor) -> torch.Tensor:
        """The activated outputs [..., I] of gate and up [..., 2 I]; float32 in between.

        The result has ``projected``'s dtype.
        """
        outputs = projected.float()
        if self.gate_layout == "interleaved":
            gate, up = outputs[..., ::2], outputs[..., 1::2]
        else:
            gate, up = outputs.chunk(2, dim=-1)
        return self._activate(gate, up).to(projected.dtype)

    def _activate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if self.activation == "silu":
            return functional.silu(gate) * up
        if self.activation == "gelu":
            return functional.gelu(gate) * up
        if self.activation == "gelu_tanh":
            return functional.gelu(gate, approximate="tanh") * up
        if self.activation == "relu":
            return functional.relu(gate) * up
        bound = float("inf") if self.limit is None else self.limit
        gate, up = gate.clamp(max=bound), up.clamp(-bound, bound)
        return (up + 1) * gate * torch.sigmoid(self.alpha * gate)
