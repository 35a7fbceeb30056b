"""Which side each operation of a graph is on, so that the least has to cross between two sides."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import networkx  # type: ignore[import-untyped]

from coxcompile.planner.plan import Device

Place = TypeVar("Place", bound=Hashable)


@dataclass(frozen=True)
class Value(Generic[Place]):
    """Something computed in one place and read in others.

    Attributes:
        size: bytes that cross if any reader is on another side than the producer, however many.
        producer: where it is computed.
        readers: where it is read.
    """

    size: int
    producer: Place
    readers: tuple[Place, ...]


def minimum_cut(
    values: Sequence[Value[Place]], pinned: Mapping[Place, Device]
) -> dict[Place, Device]:
    """The side of every place that occurs, of which ``pinned`` are given.

    No other assignment moves fewer bytes; among those that move as few, none has fewer transfers;
    among those, a value crosses as late as possible, ``values`` being in the order in which they
    are computed, so that a place tends to be on the side of what it reads; where even that leaves
    a choice, it is the CPU. The same arguments give the same answer.

    The sides are those of a minimum cut between them. A value is an edge to each side's readers,
    through a node of its own if there are several (the standard construction of a hyperedge).
    """
    network = networkx.DiGraph()
    network.add_nodes_from(("gpu", "cpu"))

    def node(place: Place) -> Hashable:
        return pinned.get(place, (place,))

    def connect(source: Hashable, target: Hashable, capacity: int | None) -> None:
        if source == target:
            return
        if capacity is None:
            network.add_edge(source, target)
        elif network.has_edge(source, target):
            network[source][target]["capacity"] += capacity
        else:
            network.add_edge(source, target, capacity=capacity)

    many = 2 * len(values) + 1
    for number, value in enumerate(values):
        # Lexicographic: a sum over all values of a later term is less than one of an earlier.
        capacity = (value.size * many + 1) * many**2 + len(values) - number
        producer = node(value.producer)
        readers = dict.fromkeys(node(reader) for reader in value.readers)
        network.add_nodes_from((producer, *readers))
        readers.pop(producer, None)
        if len(readers) == 1:
            (reader,) = readers
            connect(producer, reader, capacity)
            connect(reader, producer, capacity)
        elif readers:
            # From the side of the flow's source ("cpu") to the other, and back.
            connect(producer, (number, "up"), capacity)
            connect((number, "down"), producer, capacity)
            for reader in readers:
                connect((number, "up"), reader, None)
                connect(reader, (number, "down"), None)
    # What can still be on either side is on that of the source.
    _, (on_cpu, _) = networkx.minimum_cut(
        network, "cpu", "gpu", flow_func=networkx.algorithms.flow.boykov_kolmogorov
    )
    places = dict.fromkeys(place for value in values for place in (value.producer, *value.readers))
    return {place: pinned.get(place, "cpu" if node(place) in on_cpu else "gpu") for place in places}


def bytes_moved(values: Sequence[Value[Place]], sides: Mapping[Place, Device]) -> int:
    """Bytes that cross between the sides."""
    return sum(
        value.size
        for value in values
        if any(sides[reader] != sides[value.producer] for reader in value.readers)
    )
