"""The host's order of a co-execution graph in the making: events and frees with every node."""

from collections import defaultdict
from collections.abc import Iterable

from torch.fx import Graph, GraphModule, Node

from coxcompile.passes.clocks import Clocks
from coxcompile.passes.dependencies import Dependencies, task_of
from coxcompile.passes.device_memory import allocates, workspace
from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import buffer_of, bytes_of, stream_of
from coxcompile.runtime.instructions import STREAMS, Stream


class Issue:
    """Issues the tasks of a graph one by one into a new graph.

    Args:
        room: bytes for values that come and go.
        lookahead: how many waves an asynchronous task that allocates memory may be issued before
            the earliest one that is left.

    Attributes:
        graph: the new graph.
        peak: the most bytes of values, and of the workspace of a task, at once.
    """

    def __init__(
        self, graph_module: GraphModule, dependencies: Dependencies, room: int, lookahead: float
    ) -> None:
        self.graph = Graph()
        self.peak = 0
        self._module = graph_module
        self._tasks = dependencies.tasks
        self._keys = dependencies.keys
        self._before = dependencies.before
        self._issued_before = dependencies.issued_before
        self._room = room
        self._lookahead = lookahead
        self._copies: dict[Node, Node] = {}
        self._clocks = Clocks()
        self._events: dict[Node, Node] = {}
        self._last: dict[Stream, Node] = {}
        self._held = 0
        self._used_by: dict[Node, set[Node]] = {}
        self._uses: dict[Node, list[Node]] = defaultdict(list)
        self._unissued: dict[Node, int] = {}
        self._through: list[Node] = []
        self._watch_buffers()

    def run(self) -> None:
        """Issue everything."""
        for node in self._module.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._copy(node)
        queues = {
            stream: sorted(
                (t for t in self._tasks if stream_of(t) == stream), key=self._keys.__getitem__
            )
            for stream in STREAMS
        }
        while any(queues.values()):
            earliest = min(self._keys[queue[0]][0] for queue in queues.values() if queue)
            started = False
            for stream, queue in queues.items():
                while stream != "host" and queue and self._may_start(queue[0], earliest):
                    self._issue(queue.pop(0))
                    started = True
            if not started:
                self._issue_next(queues)
        for earlier in self._clocks.missing("host", self._last.values()):
            self._wait("host", earlier)
        self._free()
        self._copy(self._module.graph.output_node())

    def _watch_buffers(self) -> None:
        for task in self._tasks:
            if task.op == "call_module" and task.meta["device"] == "gpu":
                self._used_by |= {result: {task} for result in task.users}
            elif allocates(self._module, task):
                self._used_by[task] = {task}
        for task in self._tasks:
            for owner in {buffer_of(source) for source in task.all_input_nodes}:
                if owner in self._used_by:
                    self._used_by[owner].add(task)
        for buffer, users in self._used_by.items():
            self._unissued[buffer] = len(users)
            for task in users:
                self._uses[task].append(buffer)

    def _is_ready(self, task: Node) -> bool:
        earlier = (*self._before[task], *self._issued_before[task])
        return all(other in self._copies for other in earlier)

    def _may_start(self, task: Node, earliest: int) -> bool:
        ahead = self._keys[task][0] - earliest
        return self._is_ready(task) and (ahead <= self._lookahead or not self._needs(task))

    def _issue_next(self, queues: dict[Stream, list[Node]]) -> None:
        """The host's next task, or, if it waits for one that is further ahead, that one."""
        heads = [queue[0] for queue in (queues["host"], *queues.values()) if queue]
        ready = [task for task in heads if self._is_ready(task)]
        if not ready:
            ready = [task for queue in queues.values() for task in queue if self._is_ready(task)]
        assert ready, "the graph has a cycle"
        task = ready[0] if stream_of(ready[0]) == "host" else min(ready, key=self._keys.get)  # type: ignore[arg-type]
        queues[self._stream(task)].remove(task)
        self._issue(task)

    def _issue(self, task: Node) -> None:
        stream = self._stream(task)
        if self._held + self._needs(task) > self._room:
            self._make_room()
        for earlier in self._clocks.missing(stream, self._before[task]):
            self._wait(stream, earlier)
        self._copy(task).meta["stream"] = stream
        self._clocks.append(task, stream)
        self._last[stream] = task
        self.peak = max(self.peak, self._held + self._needs(task))
        self._held += allocates(self._module, task)
        for buffer in self._uses[task]:
            self._unissued[buffer] -= 1
            if not self._unissued[buffer]:
                self._through.append(buffer)
        self._free()

    def _needs(self, task: Node) -> int:
        return allocates(self._module, task) + workspace(self._module, task)

    def _make_room(self) -> None:
        """Let streams wait for the readers of what they allocated, so that it can be freed."""
        readers: dict[Stream, dict[Node, None]] = defaultdict(dict)
        for buffer in self._through:
            readers[self._allocated_on(buffer)] |= dict.fromkeys(self._used_by[buffer])
        for stream, tasks in readers.items():
            for reader in self._clocks.missing(stream, tasks):
                self._wait(stream, reader)
        self._free()

    def _free(self) -> None:
        """What all readers are known to be through with, on the stream that it was allocated on."""
        for buffer in list(self._through):
            stream = self._allocated_on(buffer)
            if all(self._clocks.is_after(stream, task) for task in self._used_by[buffer]):
                self._through.remove(buffer)
                node = self.graph.call_function(instructions.free, (self._copy(buffer),))
                node.meta = {"val": None, "stream": stream}
                self._held -= bytes_of(buffer.meta["val"])

    def _allocated_on(self, buffer: Node) -> Stream:
        maker = task_of(buffer)
        assert maker is not None
        return self._stream(maker)

    def _wait(self, stream: Stream, earlier: Node) -> None:
        if earlier not in self._events:
            number = len(self._events)
            with self.graph.inserting_after(self._copies[earlier]):
                record = self.graph.call_function(instructions.record_event, (number,))
            record.meta = {"val": None, "stream": self._stream(earlier)}
            self._events[earlier] = record
        wait = self.graph.call_function(instructions.wait_event, self._events[earlier].args)
        wait.meta = {"val": None, "stream": stream}
        self._clocks.wait(stream, earlier)

    def _copy(self, node: Node) -> Node:
        """The node in the new graph; views of inputs are copied when they are first needed."""
        if node.target is instructions.transfer_wait:
            return self._copy(node.all_input_nodes[0])
        if node not in self._copies:
            sources: Iterable[Node] = node.all_input_nodes
            for source in sources:
                self._copy(source)
            self._copies[node] = self.graph.node_copy(node, self._copy)
        return self._copies[node]

    def _stream(self, task: Node) -> Stream:
        stream = stream_of(task)
        assert stream is not None
        return stream
