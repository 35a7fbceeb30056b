"""Which memory each node of a co-execution graph reads and writes, and on which stream."""

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from coxcompile.runtime import instructions
from coxcompile.runtime.instructions import INSTRUCTIONS, Stream

aten = torch.ops.aten
ALIGNMENT = 64
"""Bytes to which fetched parameters are aligned in their buffer."""

Buffer = Node | str
"""A value, by the node that made it; or memory with a name that outlives the call."""

_IN_PLACE = (instructions.run_experts, instructions.add_rows)
_WITHOUT_MEMORY = (
    *(instructions.record_event, instructions.wait_event, instructions.free),
    *(instructions.transfer_wait, operator.getitem),
)


@dataclass(frozen=True)
class Accesses:
    """Buffers that a node reads, and those it writes, in whole or in part."""

    reads: frozenset[Buffer]
    writes: frozenset[Buffer]


def stream_of(node: Node) -> Stream | None:
    """Where a node runs; None for what takes no time: inputs, views, the output."""
    if "stream" in node.meta:
        return node.meta["stream"]  # type: ignore[no-any-return]
    if node.op == "call_module":
        return "gpu" if node.meta["device"] == "gpu" else "host"
    if node.target in (instructions.transfer_start, instructions.transfer_rows_start):
        return "host_to_device" if node.args[1] == "gpu" else "device_to_host"
    if node.target in (instructions.device_weight, instructions.device_cache):
        return None
    return INSTRUCTIONS.get(node.target) if callable(node.target) else None


def buffer_of(node: Node) -> Node:
    """The node that made the memory which ``node``, maybe a view or an in-place result, is in."""
    while True:
        if node.target in _IN_PLACE or node.target is instructions.transfer_wait:
            node = node.args[0]  # type: ignore[assignment]
        elif node.target is operator.getitem or node.target is aten.slice.Tensor:
            source = node.args[0]
            assert isinstance(source, Node)
            if source.op == "call_module":
                return node
            node = source
        else:
            return node


def named_memory(node: Node) -> str | None:
    """The memory that outlives the call which a node fills, by name."""
    if node.target in (instructions.stage_expert, instructions.stage_weights):
        return f"pinned {node.args[0]}"
    if node.target is instructions.fetch_expert:
        return f"slot {node.args[1]}"
    if node.target is instructions.fetch_weights:
        return f"weights {node.args[1]}"
    return None


def accesses(graph_module: GraphModule, node: Node) -> Accesses:
    """What ``node`` reads and writes when it runs."""
    if stream_of(node) is None or node.target in _WITHOUT_MEMORY:
        return Accesses(frozenset(), frozenset())
    owners = {buffer_of(source) for source in node.all_input_nodes} - read_when_issued(node)
    reads: set[Buffer] = {*owners, *filter(None, map(named_memory, owners))}
    writes: set[Buffer] = set()
    if node.op == "call_module":
        writes |= set(node.users)
        writes |= {buffer_of(source) for source in mutated_inputs(graph_module, node)}
    elif node.target in _IN_PLACE:
        writes.add(buffer_of(node))
    else:
        writes |= {node, *filter(None, [named_memory(node)])}
    return Accesses(frozenset(reads), frozenset(writes))


def read_when_issued(node: Node) -> set[Node]:
    """What the host reads when it issues ``node``: what it copies to the device."""
    transfers = (instructions.transfer_start, instructions.transfer_rows_start)
    if node.target not in transfers or node.args[1] != "gpu":
        return set()
    return {buffer_of(source) for source in node.all_input_nodes}


def mutated_inputs(graph_module: GraphModule, node: Node) -> Iterator[Node]:
    """The arguments of a partition that it writes to."""
    inner: Any = getattr(graph_module, str(node.target))
    placeholders = inner.graph.find_nodes(op="placeholder")
    written = {
        write.args[0]
        for write in inner.graph.find_nodes(op="call_function", target=aten.copy_.default)
    }
    for placeholder, argument in zip(placeholders, node.args, strict=True):
        if placeholder in written:
            yield argument  # type: ignore[misc]


def bytes_of(value: Any) -> int:
    """Bytes of a tensor or of all tensors in a tuple, as they lie in memory."""
    if isinstance(value, list | tuple):
        return sum(bytes_of(part) for part in value)
    if not isinstance(value, torch.Tensor):
        return 0
    reach = sum((s - 1) * t for s, t in zip(value.shape, value.stride(), strict=True)) + 1
    return int(reach) * value.element_size() if math.prod(value.shape) else 0


def packed_bytes(values: tuple[torch.Tensor, ...]) -> int:
    """Bytes of tensors one after the other, each aligned."""
    return sum(-(-bytes_of(value) // ALIGNMENT) * ALIGNMENT for value in values)
