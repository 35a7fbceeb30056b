"""One layer's experts in a co-execution graph: where each of them is, by its rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from coxcompile.planner.plan import ExpertSplit


@dataclass(frozen=True, kw_only=True)
class ExpertLayer:
    """A layer whose experts are divided; experts are named by rank, the hottest being 0.

    Which expert has which rank is not part of the graph: it is the expert store's, and can change
    between calls.

    Attributes:
        number: of the layer among those with experts.
        path: of the MoE block in the model.
        split: ranks below ``resident`` stay on the accelerator, the next ``migrating`` are fetched,
            the others are the CPU's.
        first_slot: slot of the arena in which rank 0 stays; the other resident ranks follow.
        migrating_slots: for each migrating rank the slot it is fetched into.
        tables: for each ``run_experts`` of the layer the ranks that it computes.
        weights: gate_up, down and, if it has them, their biases: shapes [E, ...] and dtype.
        inputs: names of the graph's inputs that are these weights.
        arguments: keyword arguments of the layer's ``experts_subset_``.
        top_k: experts a token chooses.
    """

    number: int
    path: str
    split: ExpertSplit
    first_slot: int
    migrating_slots: tuple[int, ...]
    tables: tuple[tuple[int, ...], ...]
    weights: tuple[torch.Tensor | None, ...]
    inputs: tuple[str | None, ...]
    arguments: Mapping[str, Any]
    top_k: int

    @property
    def experts(self) -> int:
        """All of them (E)."""
        return self.split.experts

    @property
    def cpu_ranks(self) -> range:
        """Ranks of the CPU's experts."""
        return range(self.split.resident + self.split.migrating, self.experts)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert, biases included."""
        return sum(w.nbytes // self.experts for w in self.weights if w is not None)

    def slot_of(self, rank: int) -> int:
        """The slot of the arena in which an expert of the accelerator is computed."""
        if rank < self.split.resident:
            return self.first_slot + rank
        return self.migrating_slots[rank - self.split.resident]
