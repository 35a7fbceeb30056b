"""Mutants of a scheduled graph: each lacks one thing that keeps it right. And what comes when."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import networkx
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import buffer_of, named_memory, stream_of
from tests.schedule_cases import Scheduled

STAGED = (instructions.stage_expert, instructions.stage_weights)
FETCHED = (instructions.fetch_expert, instructions.fetch_weights)


@dataclass(frozen=True)
class Mutant:
    """What differs from the scheduled graph.

    Attributes:
        kind: of mutation.
        about: the name of the node that was removed, moved or changed.
        order: all nodes of the mutant.
        arguments: of nodes that have others.
        streams: of nodes that are on another.
    """

    kind: str
    about: str
    order: list[Node] = field(repr=False)
    arguments: Mapping[Node, tuple[Any, ...]] = field(default_factory=dict)
    streams: Mapping[Node, str] = field(default_factory=dict)

    def build(self, case: Scheduled) -> Any:
        """A graph with the original's partitions, to be verified or run: much faster to make than
        a GraphModule, which compiles itself and all partitions anew.
        """
        graph = Graph()
        copies: dict[Node, Node] = {}
        for node in self.order:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        for node, arguments in self.arguments.items():
            copies[node].args = map_arg(arguments, copies.__getitem__)
        for node, stream in self.streams.items():
            copies[node].meta["stream"] = stream
        constants = {
            str(node.target): getattr(case.graph_module, str(node.target))
            for node in graph.find_nodes(op="get_attr")
        }
        return SimpleNamespace(graph=graph, **dict(case.graph_module.named_children()), **constants)


def mutants(case: Scheduled) -> Iterator[Mutant]:
    """All mutants of one graph."""
    for kind in KINDS:
        yield from kind(case)


def without_a_wait(case: Scheduled) -> Iterator[Mutant]:
    """One wait is removed."""
    nodes = case.nodes
    for wait in _of(nodes, instructions.wait_event):
        yield Mutant("wait removed", wait.name, [n for n in nodes if n is not wait])


def without_an_event(case: Scheduled) -> Iterator[Mutant]:
    """One event is removed, with all waits for it; or these are left to wait for nothing."""
    nodes = case.nodes
    for record in _of(nodes, instructions.record_event):
        number = record.args[0]
        events = (instructions.record_event, instructions.wait_event)
        about = {n for n in nodes if n.target in events and n.args[0] == number}
        yield Mutant("event removed", record.name, [n for n in nodes if n not in about])
        yield Mutant("record removed", record.name, [n for n in nodes if n is not record])


def late_waits(case: Scheduled) -> Iterator[Mutant]:
    """A wait stands behind the node that it is for."""
    nodes = case.nodes
    for wait in _of(nodes, instructions.wait_event):
        later = nodes[nodes.index(wait) + 1 :]
        waiting = next((n for n in later if _waits_on(n, stream_of(wait))), None)
        if waiting is not None:
            yield Mutant("wait after its node", wait.name, _moved(nodes, wait, after=waiting))


def producer_of(nodes: Sequence[Node], wait: Node) -> Node:
    """The node whose end ``wait`` waits for: what comes before the event on its stream."""
    number = wait.args[0]
    record = next(n for n in nodes if n.target is instructions.record_event and n.args[0] == number)
    return _before(nodes, record)


def early_records(case: Scheduled) -> Iterator[Mutant]:
    """An event is recorded before what it marks the end of."""
    nodes = case.nodes
    for record in _of(nodes, instructions.record_event):
        order = _moved(nodes, record, before=_before(nodes, record))
        yield Mutant("record too early", record.name, order)


def records_elsewhere(case: Scheduled) -> Iterator[Mutant]:
    """An event is recorded on another stream."""
    for record in _of(case.nodes, instructions.record_event):
        for stream in instructions.STREAMS:
            if stream not in ("host", stream_of(record)):
                streams = {record: stream}
                yield Mutant("record elsewhere", record.name, case.nodes, streams=streams)


def early_frees(case: Scheduled) -> Iterator[Mutant]:
    """A buffer is freed before its last reader, or as soon as it is made."""
    nodes = case.nodes
    for free in _of(nodes, instructions.free):
        buffer = free.args[0]
        assert isinstance(buffer, Node)
        readers = [n for n in nodes if _runs(n) and buffer in map(buffer_of, n.all_input_nodes)]
        if readers:
            yield Mutant("free too early", free.name, _moved(nodes, free, before=readers[-1]))
            yield Mutant("free at once", free.name, _moved(nodes, free, after=buffer))


def misplaced_fills(case: Scheduled) -> Iterator[Mutant]:
    """What is staged or fetched lands where something else lies that is still to be read."""
    nodes = case.nodes
    place = {node: number for number, node in enumerate(nodes)}

    def is_between(fill: Node, other: Node) -> bool:
        return place[other] < place[fill] < place[_readers(other)[-1]]

    for targets, index in ((STAGED, 0), (FETCHED, 1)):
        fills = _of(nodes, *targets)
        for fill in fills:
            others = [
                other.args[index]
                for other in fills
                if other.target is fill.target and other.args[index] != fill.args[index]
                if is_between(fill, other) or is_between(other, fill)
            ]
            for number in dict.fromkeys(others):
                arguments = (*fill.args[:index], number, *fill.args[index + 1 :])
                yield Mutant("other place", fill.name, nodes, {fill: arguments})


def early_fills(case: Scheduled) -> Iterator[Mutant]:
    """Memory is filled anew before what was there has been read."""
    nodes = case.nodes
    place = {node: number for number, node in enumerate(nodes)}
    previous: dict[str, Node] = {}
    for fill in nodes:
        name = named_memory(fill) if _runs(fill) else None
        if name is None:
            continue
        reader = _readers(previous[name])[0] if name in previous else None
        if reader is not None and all(place[s] < place[reader] for s in fill.all_input_nodes):
            yield Mutant("filled too early", fill.name, _moved(nodes, fill, before=reader))
        previous[name] = fill


def without_a_fetch(case: Scheduled) -> Iterator[Mutant]:
    """Experts run without one of the fetches that they need."""
    for run in _of(case.nodes, instructions.run_experts):
        *others, fetches = run.args
        for fetch in fetches:  # type: ignore[union-attr]
            fewer = [other for other in fetches if other is not fetch]  # type: ignore[union-attr]
            yield Mutant("fetch forgotten", run.name, case.nodes, {run: (*others, fewer)})


def other_streams(case: Scheduled) -> Iterator[Mutant]:
    """A node is on another stream, without waits of its own there.

    Not where it still comes after what it reads and before its readers, because these are on that
    stream or waited for anyway: such a schedule is as good as the original.
    """
    nodes = case.nodes
    streams = [stream for stream in instructions.STREAMS if stream != "host"]
    for number, node in enumerate(nodes):
        if not _runs(node) or stream_of(node) == "host":
            continue
        others = [stream for stream in streams if stream != stream_of(node)]
        moved = {node: others[number % len(others)]}
        order = event_graph(nodes, moved)
        edges = [(source, node) for source in _makers(node)]
        edges += [(node, reader) for reader in _readers(node)]
        if not all(is_ordered(order, *edge) for edge in edges):
            yield Mutant("other stream", node.name, nodes, streams=moved)


KINDS: tuple[Callable[[Scheduled], Iterator[Mutant]], ...] = (
    *(without_a_wait, without_an_event, late_waits, early_records, records_elsewhere),
    *(early_frees, early_fills, misplaced_fills, without_a_fetch, other_streams),
)


def event_graph(
    nodes: Sequence[Node], streams: Mapping[Node, str] | None = None
) -> networkx.DiGraph:
    """What comes before what: vertices ("issue", node) and ("end", node), as design.md has it.

    One host thread issues all nodes in order and holds for its own; each stream carries out its own
    in order; a wait ends after what it waits for was recorded.

    Args:
        streams: of nodes that are on another than they say.
    """
    order = networkx.DiGraph()
    host: tuple[str, Node] | None = None
    last: dict[object, tuple[str, Node]] = {}
    recorded: dict[object, tuple[str, Node]] = {}
    for node in nodes:
        stream = (streams or {}).get(node, stream_of(node))
        issue, end = ("issue", node), ("end", node)
        order.add_edge(issue, end)
        if host is not None:
            order.add_edge(host, issue)
        on_host = stream in (None, "host")
        host = end if on_host else issue
        if not on_host:
            if stream in last:
                order.add_edge(last[stream], end)
            last[stream] = end
        if node.target is instructions.record_event:
            recorded[node.args[0]] = end
        if node.target is instructions.wait_event and node.args[0] in recorded:
            order.add_edge(recorded[node.args[0]], end)
    return order


def is_ordered(order: networkx.DiGraph, earlier: Node, later: Node) -> bool:
    """Whether ``earlier`` ends before ``later`` does, whatever the speeds."""
    return bool(networkx.has_path(order, ("end", earlier), ("end", later)))


def _of(nodes: list[Node], *targets: object) -> list[Node]:
    return [node for node in nodes if node.target in targets]


def _before(nodes: Sequence[Node], record: Node) -> Node:
    """The node that ran on the record's stream last."""
    earlier = reversed(nodes[: nodes.index(record)])
    return next(n for n in earlier if _runs(n) and stream_of(n) == stream_of(record))


def _makers(node: Node) -> list[Node]:
    """The nodes that run and whose results ``node`` reads."""
    found: dict[Node, None] = {}
    for source in node.all_input_nodes:
        found |= {source: None} if _runs(source) else dict.fromkeys(_makers(source))
    return list(found)


def _readers(node: Node) -> list[Node]:
    """The nodes that run and read what ``node`` makes."""
    found: dict[Node, None] = {}
    for user in node.users:
        found |= {user: None} if _runs(user) else dict.fromkeys(_readers(user))
    return list(found)


def _runs(node: Node) -> bool:
    """Whether it reads or writes memory when it runs."""
    marks = (instructions.record_event, instructions.wait_event, instructions.free)
    return stream_of(node) is not None and node.target not in marks


def _waits_on(node: Node, stream: object) -> bool:
    return _runs(node) and stream_of(node) == stream


def _moved(
    nodes: list[Node], node: Node, *, before: Node | None = None, after: Node | None = None
) -> list[Node]:
    order = [n for n in nodes if n is not node]
    place = order.index(before) if before is not None else order.index(after) + 1  # type: ignore[arg-type]
    return [*order[:place], node, *order[place:]]
