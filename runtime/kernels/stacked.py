"""Stacked experts and the router's choices sorted by them: the two operands of grouped products."""

from dataclasses import dataclass

import torch

from coxcompile.runtime.kernels.gating import Gating


@dataclass(frozen=True)
class StackedExperts:
    """The experts whose weights are here, one a slot; shapes as in :mod:`coxcompile.ops`."""

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    transposed: bool
    gating: Gating

    def matrices(self, weight: torch.Tensor) -> torch.Tensor:
        """View ``gate_up`` or ``down``, or a selection of their slots, as [slots, inputs, outputs].

        To be multiplied with tokens from the left.
        """
        return weight if self.transposed else weight.mT


@dataclass(frozen=True)
class SortedChoices:
    """All choices (token * top_k + place) by the slot of their expert, those without one last.

    Attributes:
        top_k: choices of a token.
        order: the choices' numbers, int64 [choices].
        slots: their slots, ascending, int64 [choices]; the number of slots for those without one.
        ends: slot s has positions ends[s - 1]..ends[s] (from 0 for s = 0), int64 [slots].
    """

    top_k: int
    order: torch.Tensor
    slots: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of(cls, choice_slots: torch.Tensor, slots: int) -> "SortedChoices":
        """Sort choice_slots [tokens, top_k] int64, negative for none, over ``slots`` slots."""
        flat = choice_slots.flatten()
        sorted_slots, order = flat.masked_fill(flat < 0, slots).sort(stable=True)
        places = torch.arange(slots, device=flat.device)
        ends = torch.searchsorted(sorted_slots, places, right=True)
        return cls(choice_slots.shape[1], order, sorted_slots, ends)

    @property
    def tokens(self) -> torch.Tensor:
        """Each choice's token, int64 [choices]."""
        return self.order // self.top_k

    @property
    def valid_slots(self) -> torch.Tensor:
        """``slots`` with any slot in place of none: for look-ups whose results are dropped."""
        return self.slots.clamp(max=len(self.ends) - 1)
