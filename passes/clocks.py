"""Vector clocks: what each stream of a schedule is known to come after."""

from collections.abc import Iterable

from torch.fx import Node

from coxcompile.runtime.instructions import STREAMS, Stream

Clock = dict[Stream, int]


class Clocks:
    """Positions that each stream has passed, from its own order and the events it waited for.

    A node put on a stream comes after everything the host came after when it was put there.
    """

    def __init__(self) -> None:
        self._clocks: dict[Stream, Clock] = {s: dict.fromkeys(STREAMS, 0) for s in STREAMS}
        self._ends: dict[Node, tuple[Stream, Clock]] = {}

    def append(self, node: Node, stream: Stream) -> None:
        """Put a node at the end of a stream."""
        clock = self._join(stream, self._clocks["host"])
        clock[stream] += 1
        self._ends[node] = (stream, dict(clock))

    def wait(self, stream: Stream, node: Node) -> None:
        """Let a stream go on only after ``node``."""
        self._join(stream, self._clocks["host"])
        self._join(stream, self._ends[node][1])

    def is_after(self, stream: Stream, node: Node) -> bool:
        """Whether what is put on ``stream`` next comes after ``node``."""
        where, clock = self._ends[node]
        known = max(self._clocks[stream][where], self._clocks["host"][where])
        return known >= clock[where]

    def missing(self, stream: Stream, nodes: Iterable[Node]) -> list[Node]:
        """The nodes that ``stream`` has to wait for so that it comes after all of them.

        None of them is implied by the stream's order or by another one (the transitive reduction).
        """
        left = [node for node in nodes if not self.is_after(stream, node)]
        return [
            node
            for node in left
            if not any(other is not node and self._implies(other, node) for other in left)
        ]

    def _implies(self, later: Node, earlier: Node) -> bool:
        where, clock = self._ends[earlier]
        return self._ends[later][1][where] >= clock[where]

    def _join(self, stream: Stream, other: Clock) -> Clock:
        clock = self._clocks[stream]
        for name, position in other.items():
            clock[name] = max(clock[name], position)
        return clock
