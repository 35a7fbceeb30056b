"""A co-execution graph → one order of all its nodes, with the events and frees that it takes."""

import operator
from collections import defaultdict

import torch
from torch.fx import Graph, GraphModule, Node

from coxcompile.passes.clocks import Clocks
from coxcompile.passes.context import PassContext
from coxcompile.passes.device_memory import allocates, room_for_values, workspace
from coxcompile.passes.waves import Key, waves
from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import buffer_of, bytes_of, mutated_inputs, named_memory, stream_of
from coxcompile.runtime.instructions import STREAMS, Stream

aten = torch.ops.aten
PINNED_PLACES = 2
"""Places in pinned memory for weights: one is filled while the other crosses the link."""

_STAGED = (instructions.stage_expert, instructions.stage_weights)


def schedule(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Order the nodes as the host issues them, and insert ``record_event``, ``wait_event``, ``free``.

    Each stream serves its nodes in waves (:mod:`coxcompile.passes.waves`). The host issues every
    asynchronous node as soon as what it depends on has been issued, so transfers start as early as
    the memory allows, and only then carries out its own next one; waits stand right before what
    waits. A wait is inserted where no order of streams and no other wait implies it (transitive
    reduction), so none can be left out. Device buffers are freed at the first point at which all
    their readers are known to be through.

    Must not change what is computed: only order, events and frees are new.
    """
    assert context.placement is not None
    issue = _Issue(graph_module, context)
    issue.run(context.placement.plan.coalesced)
    graph_module.graph = issue.graph
    return graph_module


class _Issue:
    """The host's order in the making."""

    def __init__(self, graph_module: GraphModule, context: PassContext) -> None:
        self.module = graph_module
        self.nodes = list(graph_module.graph.nodes)
        self.tasks = [node for node in self.nodes if stream_of(node) is not None]
        self.graph = Graph()
        self.copies: dict[Node, Node] = {}
        self.clocks = Clocks()
        self.events: dict[Node, Node] = {}
        self.room = room_for_values(graph_module, context)
        self.held = 0
        self.used_by: dict[Node, set[Node]] = {}
        self.uses: dict[Node, list[Node]] = defaultdict(list)
        self.unissued: dict[Node, int] = {}
        self.through: list[Node] = []
        self.last: dict[Stream, Node] = {}

    def run(self, coalesced: bool) -> None:
        reads = {task: self._read(task) for task in self.tasks}
        keys = waves(self.tasks, reads, coalesced)
        self.before = {task: list(reads[task]) for task in self.tasks}
        self._give_out_places(keys)
        self._order_reuse(keys)
        self._order_mutations()
        self._watch_buffers()
        for node in self.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._copy(node)
        self._issue_all(keys)
        self._finish()

    def _read(self, task: Node) -> list[Node]:
        """The tasks whose results ``task`` reads."""
        sources = (self._task_of(source) for source in task.all_input_nodes)
        return list(dict.fromkeys(source for source in sources if source is not None))

    def _task_of(self, node: Node) -> Node | None:
        while stream_of(node) is None or node.target is instructions.transfer_wait:
            if not node.all_input_nodes:
                return None
            node = node.all_input_nodes[0]
        return node

    def _give_out_places(self, keys: dict[Node, Key]) -> None:
        staged = [task for task in self.tasks if task.target in _STAGED]
        for number, task in enumerate(sorted(staged, key=keys.__getitem__)):
            task.args = (number % PINNED_PLACES, *task.args[1:])

    def _order_reuse(self, keys: dict[Node, Key]) -> None:
        """What fills memory anew comes after all that read what was there."""
        previous: dict[str, Node] = {}
        for task in sorted(self.tasks, key=keys.__getitem__):
            name = named_memory(task)
            if name is None:
                continue
            if name in previous:
                self.before[task] += self._readers(previous[name])
            previous[name] = task

    def _readers(self, node: Node) -> list[Node]:
        readers: dict[Node, None] = {}
        for user in node.users:
            if user.target is operator.getitem or user.target is instructions.transfer_wait:
                readers |= dict.fromkeys(self._readers(user))
            elif stream_of(user) is not None:
                readers[user] = None
        return list(readers)

    def _order_mutations(self) -> None:
        """Who reads an input comes before who writes to it."""
        for task in self.tasks:
            if task.op != "call_module":
                continue
            for written in mutated_inputs(self.module, task):
                readers = [u for u in written.users if u is not task]
                if written.op == "call_function" and written.target is aten.slice.Tensor:
                    readers += [u for u in written.args[0].users if stream_of(u)]  # type: ignore[union-attr]
                self.before[task] += [u for u in readers if stream_of(u) and u is not task]

    def _watch_buffers(self) -> None:
        for task in self.tasks:
            if task.op == "call_module" and task.meta["device"] == "gpu":
                self.used_by |= {result: {task} for result in task.users}
            elif allocates(self.module, task):
                self.used_by[task] = {task}
        for task in self.tasks:
            for owner in {buffer_of(source) for source in task.all_input_nodes}:
                if owner in self.used_by:
                    self.used_by[owner].add(task)
        for buffer, users in self.used_by.items():
            self.unissued[buffer] = len(users)
            for task in users:
                self.uses[task].append(buffer)

    def _issue_all(self, keys: dict[Node, Key]) -> None:
        queues = {
            stream: sorted((t for t in self.tasks if stream_of(t) == stream), key=keys.__getitem__)
            for stream in STREAMS
        }
        asynchronous = [stream for stream in STREAMS if stream != "host"]
        while any(queues.values()):
            started = False
            for stream in asynchronous:
                while queues[stream] and self._may_start(queues[stream][0], queues["host"]):
                    self._issue(queues[stream].pop(0))
                    started = True
            if started:
                continue
            ready = [queue for queue in (queues["host"],) if queue and self._is_ready(queue[0])]
            if not ready:
                self._issue_out_of_order(queues, keys)
            else:
                self._issue(ready[0].pop(0))

    def _issue_out_of_order(self, queues: dict[Stream, list[Node]], keys: dict[Node, Key]) -> None:
        ready = [task for queue in queues.values() for task in queue if self._is_ready(task)]
        assert ready, "the graph has a cycle"
        task = min(ready, key=keys.__getitem__)
        queues[self._stream(task)].remove(task)
        self._issue(task)

    def _is_ready(self, task: Node) -> bool:
        return all(earlier in self.copies for earlier in self.before[task])

    def _may_start(self, task: Node, host: list[Node]) -> bool:
        """Ready, and within the memory unless only it can make progress."""
        if not self._is_ready(task):
            return False
        fits = self.held + allocates(self.module, task) + workspace(self.module, task) <= self.room
        return fits or not (host and self._is_ready(host[0]))

    def _issue(self, task: Node) -> None:
        stream = self._stream(task)
        for earlier in self.clocks.missing(stream, self.before[task]):
            self._wait(stream, earlier)
        copy = self._copy(task)
        copy.meta["stream"] = stream
        self.clocks.append(task, stream)
        self.last[stream] = task
        self.held += allocates(self.module, task)
        for buffer in self.uses[task]:
            self.unissued[buffer] -= 1
            if not self.unissued[buffer]:
                self.through.append(buffer)
        self._free()

    def _free(self) -> None:
        for buffer in list(self.through):
            maker = self._task_of(buffer)
            assert maker is not None
            stream = self._stream(maker)
            if all(self.clocks.is_after(stream, task) for task in self.used_by[buffer]):
                self.through.remove(buffer)
                node = self.graph.call_function(instructions.free, (self._copy(buffer),))
                node.meta = {"val": None, "stream": stream}
                self.held -= bytes_of(buffer.meta["val"])

    def _wait(self, stream: Stream, earlier: Node) -> None:
        if earlier not in self.events:
            number = len(self.events)
            with self.graph.inserting_after(self.copies[earlier]):
                record = self.graph.call_function(instructions.record_event, (number,))
            record.meta = {"val": None, "stream": self._stream(earlier)}
            self.events[earlier] = record
        wait = self.graph.call_function(instructions.wait_event, self.events[earlier].args)
        wait.meta = {"val": None, "stream": stream}
        self.clocks.wait(stream, earlier)

    def _finish(self) -> None:
        """The host waits for all streams, so that the next call finds them idle."""
        for earlier in self.clocks.missing("host", self.last.values()):
            self._wait("host", earlier)
        self._free()
        self._copy(self.module.graph.output_node())

    def _copy(self, node: Node) -> Node:
        """The node in the new graph; views of inputs are copied when they are first needed."""
        if node.target is instructions.transfer_wait:
            return self._copy(node.args[0])  # type: ignore[arg-type]
        if node not in self.copies:
            for source in node.all_input_nodes:
                self._copy(source)
            self.copies[node] = self.graph.node_copy(node, self._copy)
        return self.copies[node]

    def _stream(self, task: Node) -> Stream:
        stream = stream_of(task)
        assert stream is not None
        return stream
