"""What comes after what in a scheduled co-execution graph, whatever the streams' speeds are."""

from collections import defaultdict

from torch.fx import GraphModule, Node

from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import stream_of

# They order others; poisoning freed memory may come later.
_WITHOUT_EFFECT = (instructions.free, instructions.record_event, instructions.wait_event)


class ScheduleError(RuntimeError):
    """A co-execution graph that must not run: a race, or more memory than there is."""


class HappensBefore:
    """For each node a bit set of the nodes that are done when it ends, itself included.

    A stream carries out its nodes in order; a node starts after the host issued it; ``wait_event``
    passes after its ``record_event``; CPU nodes, and waits on the host, hold the host up.

    Raises:
        ScheduleError: a wait for an event that nothing has recorded.
    """

    def __init__(self, graph_module: GraphModule) -> None:
        self._number = {node: n for n, node in enumerate(graph_module.graph.nodes)}
        self._done: dict[Node, int] = {}
        self._issued: dict[Node, int] = {}
        host = 0
        streams: dict[str, int] = defaultdict(int)
        events: dict[object, int] = {}
        for node, number in self._number.items():
            stream = stream_of(node)
            self._issued[node] = host
            done = host | 1 << number
            if stream is not None and stream != "host":
                done |= streams[stream]
            if node.target is instructions.wait_event:
                if node.args[0] not in events:
                    raise ScheduleError(f"{node} waits for an event that nothing records before it")
                done |= events[node.args[0]]
            self._done[node] = done
            if node.target is instructions.record_event:
                events[node.args[0]] = done
            if stream is None or stream == "host":
                host = done
            else:
                streams[stream] = done

    def __call__(self, earlier: Node, later: Node) -> bool:
        """Whether ``earlier`` is done when ``later`` begins."""
        return bool(self._done[later] >> self._number[earlier] & 1)

    def issue(self, earlier: Node, later: Node) -> bool:
        """Whether ``earlier`` is done when the host issues ``later``."""
        return bool(self._issued[later] >> self._number[earlier] & 1)

    def not_done(self, at: Node) -> list[Node]:
        """Asynchronous nodes that may still run, or not have begun, when the host is at ``at``."""
        return [
            node
            for node in self._number
            if stream_of(node) not in (None, "host")
            and node.target not in _WITHOUT_EFFECT
            and not self(node, at)
        ]
