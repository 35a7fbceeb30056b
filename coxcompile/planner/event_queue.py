"""Running tasks on resources in the order of events: who is ready first is served first."""

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True, kw_only=True)
class Task:
    """Something that occupies one resource for a time, once the tasks before it are done.

    Attributes:
        name: what a timeline shows.
        resource: one task at a time runs on it; None: it takes no time and marks a point.
        seconds: how long it runs.
        step, layer, micro_batch: what it belongs to; None where it belongs to all.
        urgency: on its resource the lowest goes first; equals in the order they become ready.
        interruptible: gives its resource up to a more urgent task and goes on later.
        takes: a pool, of which it takes one place before it queues for its resource.
        gives: pool and number of places that it gives back at its end.
        allocates, frees: bytes of VRAM, from its start on and at its end.
    """

    name: str
    resource: str | None
    seconds: float
    step: int
    layer: int | None
    micro_batch: int | None = None
    urgency: int = 0
    interruptible: bool = False
    takes: str | None = None
    gives: tuple[str, int] | None = None
    allocates: float = 0.0
    frees: float = 0.0
    successors: list["Task"] = field(default_factory=list)
    predecessors: int = 0

    def then(self, successor: "Task") -> None:
        """Let ``successor`` start no earlier than this task ends."""
        self.successors.append(successor)
        successor.predecessors += 1


@dataclass(frozen=True)
class Span:
    """A time in which a task ran without interruption, in seconds."""

    task: Task
    start: float
    end: float


@dataclass(frozen=True)
class Outcome:
    """What happened.

    Attributes:
        spans: in the order in which they ended.
        memory: (seconds, bytes of VRAM allocated from then on), in the order of time.
    """

    spans: list[Span]
    memory: list[tuple[float, float]]


def run_tasks(tasks: Sequence[Task], pools: Mapping[str, int]) -> Outcome:
    """Run ``tasks`` to their end.

    Places of a pool go to the tasks that wait for them in the order of ``tasks``.

    Args:
        tasks: all of them, with their successors set; each can be run once.
        pools: places of each pool.

    Raises:
        RuntimeError: some tasks can never start: a cycle, or a pool that is too small.
    """
    run = _Run(dict(pools), {id(task): number for number, task in enumerate(tasks)})
    for task in [task for task in tasks if task.predecessors == 0]:
        run.ready(task)
    run.until_empty()
    if run.done != len(tasks):
        raise RuntimeError(f"{len(tasks) - run.done} of {len(tasks)} tasks can never start")
    return Outcome(run.spans, run.memory)


class _Run:
    """The state between two events."""

    def __init__(self, free: dict[str, int], order: dict[int, int]) -> None:
        self.now = 0.0
        self.done = 0
        self.free = free
        self.order = order
        self.spans: list[Span] = []
        self.memory: list[tuple[float, float]] = []
        self.held = 0.0
        self.waiting: dict[str, list[tuple[int, Task]]] = defaultdict(list)
        self.queues: dict[str, list[tuple[int, float, int, int, Task]]] = defaultdict(list)
        self.running: dict[str, tuple[Task, float]] = {}
        self.left: dict[int, float] = {}
        self.since: dict[int, float] = {}
        self.ends: list[tuple[float, int, float, Task]] = []

    def ready(self, task: Task) -> None:
        if task.takes is not None:
            heapq.heappush(self.waiting[task.takes], (self.order[id(task)], task))
            self.hand_out(task.takes)
        else:
            self.enqueue(task)

    def hand_out(self, pool: str) -> None:
        waiting = self.waiting[pool]
        while waiting and self.free[pool] > 0:
            self.free[pool] -= 1
            self.enqueue(heapq.heappop(waiting)[1])

    def enqueue(self, task: Task) -> None:
        if task.resource is None:
            self.hold(task.allocates)
            self.finish(task)
            return
        micro_batch = -1 if task.micro_batch is None else task.micro_batch
        since = self.since.setdefault(id(task), self.now)
        entry = (task.urgency, since, micro_batch, self.order[id(task)], task)
        heapq.heappush(self.queues[task.resource], entry)

    def hold(self, size: float) -> None:
        if size:
            self.held += size
            self.memory.append((self.now, self.held))

    def finish(self, task: Task) -> None:
        self.done += 1
        self.hold(-task.frees)
        if task.gives is not None:
            pool, places = task.gives
            self.free[pool] += places
            self.hand_out(pool)
        for successor in task.successors:
            successor.predecessors -= 1
            if successor.predecessors == 0:
                self.ready(successor)

    def dispatch(self, resource: str) -> None:
        queue = self.queues[resource]
        if not queue:
            return
        if resource in self.running:
            task, started = self.running[resource]
            if not task.interruptible or queue[0][0] >= task.urgency:
                return
            del self.running[resource]
            self.left[id(task)] -= self.now - started
            if self.now > started:
                self.spans.append(Span(task, started, self.now))
            heapq.heappush(
                queue, (task.urgency, self.since[id(task)], -1, self.order[id(task)], task)
            )
        task = heapq.heappop(queue)[-1]
        self.running[resource] = (task, self.now)
        if id(task) not in self.left:
            self.left[id(task)] = task.seconds
            self.hold(task.allocates)
        left = self.left[id(task)]
        heapq.heappush(self.ends, (self.now + left, self.order[id(task)], self.now, task))

    def until_empty(self) -> None:
        while True:
            for resource in list(self.queues):
                self.dispatch(resource)
            if not self.ends:
                return
            self.now = self.ends[0][0]
            while self.ends and self.ends[0][0] == self.now:
                _, _, started, task = heapq.heappop(self.ends)
                assert task.resource is not None
                # An end that was foreseen before an interruption no longer counts.
                if self.running.get(task.resource) != (task, started):
                    continue
                del self.running[task.resource]
                self.spans.append(Span(task, started, self.now))
                self.finish(task)
