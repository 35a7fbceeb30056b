"""Which side a node of a co-execution graph is on, and what it copies from the other."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten
INHERITED = ("operation", "layer", "micro_batch", "block")


def device_of(node: Node) -> str:
    """A node's side, "gpu" or "cpu": "cpu" for inputs, slices of them, constants, the output."""
    return "cpu" if is_host_view(node) else str(node.meta.get("device", "cpu"))


def is_host_view(node: Node) -> bool:
    """Whether the node is a slice of an input, which the executor makes without a kernel."""
    return node.target is aten.slice.Tensor and node.args[0].op == "placeholder"  # type: ignore[union-attr]


def is_view(node: Node) -> bool:
    """Whether the executor makes the node as a view: also a micro-batch's slice of what all share.

    Partitions of micro-batches are then alike, and are compiled once.
    """
    if node.target is not aten.slice.Tensor:
        return False
    return is_host_view(node) or (
        "micro_batch" in node.meta and "micro_batch" not in node.all_input_nodes[0].meta
    )


def cache_of(node: Node) -> Node:
    """The input that a node is, or is a slice of."""
    source = node.args[0] if is_host_view(node) else node
    assert isinstance(source, Node)
    return source


def overlap(first: Node, second: Node) -> bool:
    """Whether two nodes, each an input or a slice of one, share memory."""
    if cache_of(first) is not cache_of(second):
        return False
    if not (is_host_view(first) and is_host_view(second)) or first.args[1] != second.args[1]:
        return True
    begins, ends = zip(*(cast(tuple[int, int], n.args[2:4]) for n in (first, second)), strict=True)
    return bool(max(begins) < min(ends))


def add_node(
    graph: Graph,
    like: Node,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    value: Any,
    device: str,
    **keywords: Any,
) -> Node:
    """A node at the graph's insertion point that belongs to what ``like`` belongs to."""
    added = graph.call_function(target, arguments, keywords)
    added.meta = {key: like.meta[key] for key in INHERITED if key in like.meta}
    added.meta |= {"val": value, "device": device}
    return added
