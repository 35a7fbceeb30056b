"""Which side a node of a co-execution graph is on, and what it copies from the other."""

from collections.abc import Callable
from typing import Any

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


def cache_of(node: Node) -> Node:
    """The input that a node is, or is a slice of."""
    source = node.args[0] if is_host_view(node) else node
    assert isinstance(source, Node)
    return source


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
