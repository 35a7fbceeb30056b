"""What each node of a co-execution graph has to come after, before it is put in an order."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from coxcompile.passes.devices import cache_of, is_host_view, overlap
from coxcompile.passes.waves import Key, waves
from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import mutated_inputs, named_memory, read_when_issued, stream_of

PINNED_PLACES = 2
"""Places in pinned memory for weights: one is filled while the other crosses the link."""

_STAGED = (instructions.stage_expert, instructions.stage_weights)


@dataclass(frozen=True)
class Dependencies:
    """Of the nodes that run on streams, the tasks.

    Attributes:
        tasks: in a topological order.
        keys: by which each stream serves them, the lowest first.
        before: for each the tasks it has to come after.
        issued_before: for each the tasks that are only to be issued before it: the host reads what
            it changes when it issues them.
    """

    tasks: Sequence[Node]
    keys: Mapping[Node, Key]
    before: Mapping[Node, Sequence[Node]]
    issued_before: Mapping[Node, Sequence[Node]]


def dependencies(graph_module: GraphModule, *, coalesced: bool) -> Dependencies:
    """Whose results a task reads, who used the memory that it fills, who reads what it changes.

    Also gives out the places in pinned memory, in the order in which they are filled.
    """
    tasks = [node for node in graph_module.graph.nodes if stream_of(node) is not None]
    reads = {task: _read(task) for task in tasks}
    keys = waves(tasks, reads, coalesced)
    before = {task: list(sources) for task, sources in reads.items()}
    staged = sorted((t for t in tasks if t.target in _STAGED), key=keys.__getitem__)
    for number, task in enumerate(staged):
        task.args = (number % PINNED_PLACES, *task.args[1:])
    _order_reuse(tasks, keys, before)
    issued_before: dict[Node, list[Node]] = {task: [] for task in tasks}
    _order_mutations(graph_module, tasks, before, issued_before)
    return Dependencies(tasks, keys, before, issued_before)


def task_of(node: Node) -> Node | None:
    """The task that gives what ``node`` stands for; None for inputs and what is made of them."""
    while stream_of(node) is None or node.target is instructions.transfer_wait:
        if not node.all_input_nodes:
            return None
        node = node.all_input_nodes[0]
    return node


def _read(task: Node) -> list[Node]:
    sources = (task_of(source) for source in task.all_input_nodes)
    return list(dict.fromkeys(source for source in sources if source is not None))


def _order_reuse(
    tasks: Sequence[Node], keys: Mapping[Node, Key], before: Mapping[Node, list[Node]]
) -> None:
    """What fills memory anew comes after all that read what was there."""
    previous: dict[str, Node] = {}
    for task in sorted(tasks, key=keys.__getitem__):
        name = named_memory(task)
        if name is None:
            continue
        if name in previous:
            before[task].extend(_readers(previous[name]))
        previous[name] = task


def _readers(node: Node) -> list[Node]:
    readers: dict[Node, None] = {}
    for user in node.users:
        if user.target is operator.getitem or user.target is instructions.transfer_wait:
            readers |= dict.fromkeys(_readers(user))
        elif stream_of(user) is not None:
            readers[user] = None
    return list(readers)


def _order_mutations(
    graph_module: GraphModule,
    tasks: Sequence[Node],
    before: Mapping[Node, list[Node]],
    issued_before: Mapping[Node, list[Node]],
) -> None:
    """Who reads an input comes before who writes to it."""
    for task in tasks:
        if task.op != "call_module":
            continue
        for written in mutated_inputs(graph_module, task):
            for reader in _readers_of_input(written):
                if reader is not task:
                    kind = issued_before if read_when_issued(reader) else before
                    kind[task].append(reader)


def _readers_of_input(written: Node) -> list[Node]:
    """The tasks that read an input, or the slice of it, that is written to."""
    whole = cache_of(written)
    views = [whole, *(user for user in whole.users if is_host_view(user))]
    read = [view for view in views if overlap(view, written)]
    return [user for view in read for user in view.users if stream_of(user) is not None]
