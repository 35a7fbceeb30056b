"""Where the accelerator finds experts: an arena of slots, and tables that say which is where."""

from collections.abc import Sequence

import torch
from torch import Tensor

from coxcompile.runtime.accelerator import Accelerator, Pair
from coxcompile.runtime.expert_layer import ExpertLayer
from coxcompile.runtime.versions import version_of

Weights = tuple[Tensor | None, ...]
"""gate_up, down and their biases (None for none), [E, ...] each, on the host."""


class ExpertStore:
    """The experts of a co-execution graph on the accelerator; the host keeps no copy of any.

    Resident experts are copied once. Which they are follows the order of each layer, hottest first;
    another order takes effect at the next call, which copies what is missing, with no recompiling.

    Attributes:
        layers: of the graph.
        orders: for each layer the experts by rank, the hottest first.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        layers: Sequence[ExpertLayer],
        orders: Sequence[Sequence[int]],
        slots: int,
    ) -> None:
        self.layers = tuple(layers)
        self.orders = [tuple(order) for order in orders]
        self._accelerator = accelerator
        self._slots = slots
        self._arena: Weights = ()
        self._holds: dict[int, tuple[object, ...]] = {}
        self._resident: list[dict[int, int]] = []
        self._tables: list[Tensor] = []
        self._host_tables: list[Tensor] = []
        self._tabled: list[tuple[int, ...]] = []

    def reorder(self, orders: Sequence[Sequence[int]]) -> None:
        """Take other experts as the hottest from the next call on.

        Raises:
            ValueError: an order is no permutation of its layer's experts.
        """
        for layer, order in zip(self.layers, orders, strict=True):
            if sorted(order) != list(range(layer.experts)):
                raise ValueError(
                    f"orders: layer {layer.path} has experts 0 to {layer.experts - 1}, but its "
                    f"order is {tuple(order)}; name each expert once, the hottest first"
                )
        self.orders = [tuple(order) for order in orders]

    def prepare(self, weights: Sequence[Weights]) -> None:
        """Bring the resident experts and the tables up to date; nothing to do in most calls.

        Copies what is missing, or was changed in place since it was copied.
        """
        if not self._arena:
            self._allocate()
        if self._tabled != self.orders:
            self._resident = [
                self._give_slots(layer, order)
                for layer, order in zip(self.layers, self.orders, strict=True)
            ]
            self._fill_tables()
        for number, host in enumerate(weights):
            version = tuple(
                None if weight is None else version_of(weight, constant=True) for weight in host
            )
            for expert, slot in self._resident[number].items():
                if self._holds.get(slot) != (expert, *version):
                    for destination, source in self.pairs(number, expert, slot, host):
                        destination.copy_(source)
                    self._holds[slot] = (expert, *version)

    def release(self) -> None:
        """Give the accelerator's memory back; the next ``prepare`` copies everything again."""
        self._arena, self._tables = (), []
        self._holds.clear()
        self._tabled = []

    def pairs(
        self, number: int, expert: int, slot: int, host: Sequence[Tensor | None]
    ) -> list[Pair]:
        """What to copy where so that an expert of a layer lies in a slot."""
        return [
            (place[slot], weight[expert])
            for place, weight in zip(self._arena, host, strict=True)
            if place is not None and weight is not None
        ]

    def slot(self, slot: int) -> list[Tensor]:
        """The tensors of one slot of the arena."""
        return [place[slot] for place in self._arena if place is not None]

    @property
    def arena(self) -> Weights:
        """[slots, ...] each, on the accelerator."""
        return self._arena

    def table(self, number: int, table: int) -> Tensor:
        """int64 [E] on the accelerator: each expert's slot, or -1 if it is not in the table."""
        return self._tables[number][table]

    def cpu_table(self, number: int, on_host: bool) -> Tensor:
        """int64 [E]: for each of the CPU's experts itself, else -1."""
        return self._host_tables[number] if on_host else self._tables[number][-1]

    def expert(self, number: int, rank: int) -> int:
        """The expert of a layer that has this rank now."""
        return self.orders[number][rank]

    def _allocate(self) -> None:
        likes = self.layers[0].weights
        for layer in self.layers:
            if [_shape(w) for w in layer.weights] != [_shape(w) for w in likes]:
                raise ValueError(
                    f"layers {self.layers[0].path} and {layer.path} have experts of different "
                    "sizes, which one arena cannot hold; use accelerator='none'"
                )
        self._arena = tuple(
            None
            if like is None
            else torch.empty(
                (self._slots, *like.shape[1:]), dtype=like.dtype, device=self._accelerator.device
            )
            for like in likes
        )
        self._holds.clear()

    def _give_slots(self, layer: ExpertLayer, order: Sequence[int]) -> dict[int, int]:
        """The slot of each resident expert; those that are there already stay where they are."""
        hottest = order[: layer.split.resident]
        slots = [layer.slot_of(rank) for rank in range(layer.split.resident)]
        held = {self._holds[slot][0]: slot for slot in slots if slot in self._holds}
        kept = {expert: held[expert] for expert in hottest if expert in held}
        others = iter(sorted(set(slots) - set(kept.values())))
        return {expert: kept[expert] if expert in kept else next(others) for expert in hottest}

    def _fill_tables(self) -> None:
        self._tables, self._host_tables = [], []
        for layer, order, resident in zip(self.layers, self.orders, self._resident, strict=True):
            tables = torch.full((len(layer.tables) + 1, layer.experts), -1, dtype=torch.int64)
            for number, ranks in enumerate(layer.tables):
                for rank in ranks:
                    expert = order[rank]
                    tables[number, expert] = resident.get(expert, layer.slot_of(rank))
            for rank in layer.cpu_ranks:
                tables[-1, order[rank]] = order[rank]
            self._host_tables.append(tables[-1])
            self._tables.append(tables.to(self._accelerator.device))
        self._tabled = list(self.orders)


def _shape(weight: Tensor | None) -> tuple[object, ...] | None:
    return None if weight is None else (tuple(weight.shape[1:]), weight.dtype)
