"""The scheduled graph → unchanged, and proved free of races and within its memory, or an error."""

from collections import defaultdict

from torch.fx import GraphModule, Node

from coxcompile.passes.context import PassContext
from coxcompile.passes.device_memory import allocates, held_throughout, workspace
from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import (
    Buffer,
    accesses,
    buffer_of,
    bytes_of,
    named_memory,
    stream_of,
)


class ScheduleError(RuntimeError):
    """A co-execution graph that must not run: a race, or more memory than there is."""


class DeviceMemoryError(ScheduleError):
    """More memory than there is; ``missing_bytes`` is how much more the worst node needs."""

    def __init__(self, message: str, missing_bytes: int) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes


def verify(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Prove the order of every two accesses of which one writes, and the bytes held at every point.

    What happens before what: a stream carries out its nodes in order; a node starts after the host
    issued it; ``wait_event`` passes after its ``record_event``; CPU nodes, and waits on the host,
    hold the host up. Of two accesses to one buffer (a value, a slot, a place in pinned memory; a
    ``free`` counts as a write) the later in the graph must come after the earlier one by that, and
    what reads a fetched expert must find the one it was fetched for. At the output all is done.

    Runs in every compile. Written apart from :mod:`coxcompile.passes.schedule`, whose answers it
    checks.

    Raises:
        ScheduleError: the two nodes, or the node at which memory runs out, and the largest items.
    """
    order = _HappensBefore(graph_module)
    _check_accesses(graph_module, order)
    _check_memory(graph_module, context)
    return graph_module


class _HappensBefore:
    """For each node a bit set of the nodes that are done when it begins, itself included."""

    def __init__(self, graph_module: GraphModule) -> None:
        self._number = {node: n for n, node in enumerate(graph_module.graph.nodes)}
        self._done: dict[Node, int] = {}
        host = 0
        streams: dict[str, int] = defaultdict(int)
        events: dict[object, int] = {}
        for node in graph_module.graph.nodes:
            stream = stream_of(node)
            own = 1 << self._number[node]
            if stream is None:
                host |= own
                self._done[node] = host
                continue
            done = host | (0 if stream == "host" else streams[stream])
            if node.target is instructions.wait_event:
                if node.args[0] not in events:
                    raise ScheduleError(f"{node} waits for an event that nothing records before it")
                done |= events[node.args[0]]
            done |= own
            self._done[node] = done
            if node.target is instructions.record_event:
                events[node.args[0]] = done
            if stream == "host":
                host = done
            else:
                streams[stream] = done

    def __call__(self, earlier: Node, later: Node) -> bool:
        return bool(self._done[later] >> self._number[earlier] & 1)

    def asynchronous_and_not_done(self, at: Node) -> list[Node]:
        return [
            node
            for node in self._number
            if stream_of(node) not in (None, "host")
            and node.target is not instructions.free
            and node.target is not instructions.record_event
            and not self(node, at)
        ]


def _check_accesses(graph_module: GraphModule, happens_before: _HappensBefore) -> None:
    writer: dict[Buffer, Node] = {}
    readers: dict[Buffer, list[Node]] = defaultdict(list)

    def require(earlier: Node, later: Node, buffer: Buffer) -> None:
        if not happens_before(earlier, later):
            raise ScheduleError(
                f"{later} on {stream_of(later)} accesses {buffer}, but does not come after "
                f"{earlier} on {stream_of(earlier)}: a wait is missing"
            )

    filled: dict[Buffer, Node] = {}
    for node in graph_module.graph.nodes:
        freed = node.args[0] if node.target is instructions.free else None
        found = accesses(graph_module, node)
        reads, writes = found.reads, found.writes
        if freed is not None:
            writes = frozenset([freed])
        for buffer in reads:
            if buffer in writer:
                require(writer[buffer], node, buffer)
            readers[buffer].append(node)
        _check_contents(node, filled)
        for buffer in writes:
            for earlier in (*readers[buffer], *([writer[buffer]] if buffer in writer else [])):
                if earlier is not node:
                    require(earlier, node, buffer)
            writer[buffer], readers[buffer] = node, []
            if isinstance(buffer, str):
                filled[buffer] = node
    output = graph_module.graph.output_node()
    if unfinished := happens_before.asynchronous_and_not_done(output):
        raise ScheduleError(f"the call ends before {unfinished[0]} on {stream_of(unfinished[0])}")


def _check_contents(node: Node, filled: dict[Buffer, Node]) -> None:
    """Memory with a name holds what the node takes from it, nothing that came before or after."""
    for source in {buffer_of(source) for source in node.all_input_nodes}:
        name = named_memory(source)
        if name is not None and stream_of(node) is not None and filled.get(name) is not source:
            raise ScheduleError(
                f"{node} reads {source} from {name}, which holds {filled.get(name)} by then"
            )


def _check_memory(graph_module: GraphModule, context: PassContext) -> None:
    items = held_throughout(graph_module, context)
    held = sum(items.values())
    needs: dict[Node, int] = {}
    for node in graph_module.graph.nodes:
        if node.target is instructions.free:
            held -= bytes_of(node.args[0].meta["val"])
            continue
        held += allocates(graph_module, node)
        needs[node] = held + workspace(graph_module, node)
    worst = max(needs, key=needs.__getitem__)
    if needs[worst] > context.vram:
        largest = sorted(items.items(), key=lambda item: -item[1])[:3]
        raise DeviceMemoryError(
            f"{worst} needs {needs[worst] / 1e6:.1f} MB on the accelerator, but the option vram "
            f"gives {context.vram / 1e6:.1f} MB; of it are held throughout: "
            + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in largest)
            + ". Give more vram, or a plan with a smaller micro_batch or fewer experts there",
            needs[worst] - context.vram,
        )
