"""The order in which each stream serves a co-execution graph's nodes: waves (docs/simulator.md)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch.fx import Node

from coxcompile.planner.waves import EXPERT_WAVES
from coxcompile.runtime.buffers import stream_of

Key = tuple[int, int, int]
"""Wave, micro-batch, place in the graph; waves are numbered through all blocks."""


def waves(
    tasks: Sequence[Node], before: Mapping[Node, Sequence[Node]], coalesced: bool
) -> dict[Node, Key]:
    """A key for each task: a stream serves the lowest first.

    Micro-batch k's v-th visit to a stream is served in wave k + v of its layer, earlier
    micro-batches first, as the planner's simulator has it. Coalesced experts follow when all
    micro-batches of the layer are through; others belong to their micro-batch.

    Args:
        tasks: nodes that run on streams, in topological order.
        before: for each task the tasks whose results it reads.
    """
    numbers = _numbered_layers(tasks, before)
    layers = max(numbers.values(), default=0) + 1
    visits: dict[Node, int] = {}
    stops: dict[int, int] = defaultdict(int)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    barriers = set()
    for task in tasks:
        layer = numbers[task]
        micro_batch = task.meta.get("micro_batch")
        if micro_batch is None:
            if _is_coalesced(task):
                barriers.add(layer)
            continue
        block = task.meta.get("block", 0)
        first[block] = min(first.get(block, micro_batch), micro_batch)
        last[block] = max(last.get(block, micro_batch), micro_batch)
        visits[task] = max(
            (
                visits[earlier] + (stream_of(earlier) != stream_of(task))
                for earlier in before[task]
                if earlier in visits
                and earlier.meta["micro_batch"] == micro_batch
                and numbers[earlier] == layer
            ),
            default=0,
        )
        stops[layer] = max(stops[layer], visits[task] + 1)
    count = max((last[block] - first[block] + 1 for block in first), default=1)
    starts = [0]
    for layer in range(layers):
        alone = count + stops[layer] + 1
        flowing = max(count, stops[layer] + EXPERT_WAVES)
        starts.append(starts[-1] + (alone if coalesced and layer in barriers else flowing))
    keys: dict[Node, Key] = {}
    for place, task in enumerate(tasks):
        layer, block = numbers[task], task.meta.get("block", 0)
        if task in visits:
            micro_batch = task.meta["micro_batch"]
            wave = starts[layer] + micro_batch - first[block] + visits[task]
            keys[task] = (block * starts[-1] + wave, micro_batch, place)
        elif task.meta.get("operation") is not None:
            wave = starts[layer] + count + stops[layer]
            keys[task] = (block * starts[-1] + wave, -1, place)
    _place_shared(tasks, before, keys)
    return keys


def _place_shared(
    tasks: Sequence[Node], before: Mapping[Node, Sequence[Node]], keys: dict[Node, Key]
) -> None:
    """What belongs to no layer (masks, rotary tables) comes when its first reader does."""
    needed: dict[Node, int] = {}
    for place, task in reversed(list(enumerate(tasks))):
        if task not in keys:
            keys[task] = (needed.get(task, 0), -2, place)
        for earlier in before[task]:
            needed[earlier] = min(needed.get(earlier, keys[task][0]), keys[task][0])


def _numbered_layers(
    tasks: Sequence[Node], before: Mapping[Node, Sequence[Node]]
) -> dict[Node, int]:
    """Each task's layer; what follows a layer's coalesced experts belongs to the next one."""
    head = max((task.meta.get("layer", 0) for task in tasks), default=0) + 1
    numbers: dict[Node, int] = {}
    for task in tasks:
        own = head if task.meta.get("operation") == "head" else task.meta.get("layer", 0)
        inside = _is_coalesced(task)
        reached = [numbers[e] + (_is_coalesced(e) and not inside) for e in before[task]]
        numbers[task] = max([own, *reached])
    return numbers


def _is_coalesced(task: Node) -> bool:
    return task.meta.get("operation") == "experts" and "micro_batch" not in task.meta
