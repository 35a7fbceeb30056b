"""Small steps for walking a functional ATen graph backwards; every step checks, none guesses."""

from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten

# These keep the order of the elements; who strips them checks the shape at both ends.
_RESHAPES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.alias.default,
    aten.contiguous.default,
}


class NoMatch(Exception):
    """The pattern does not hold here; the message says what differs."""


def require(condition: object, reason: str) -> None:
    """Raise :class:`NoMatch` with ``reason`` unless ``condition``."""
    if not condition:
        raise NoMatch(reason)


def is_call(value: object, *targets: object) -> bool:
    """Whether ``value`` is a node that calls one of ``targets``."""
    return isinstance(value, Node) and value.op == "call_function" and value.target in targets


def expect_call(value: object, reason: str, *targets: object) -> Node:
    """``value`` as a node that calls one of ``targets``, else :class:`NoMatch`."""
    if isinstance(value, Node) and is_call(value, *targets):
        return value
    raise NoMatch(reason)


def expect_node(value: object, reason: str) -> Node:
    """``value`` as a node, else :class:`NoMatch`."""
    if isinstance(value, Node):
        return value
    raise NoMatch(reason)


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def shape_of(node: Node) -> tuple[int | torch.SymInt, ...]:
    """The tensor's shape; () for anything that is no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def dtype_of(node: Node) -> torch.dtype:
    """The tensor's dtype."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def strip_reshapes(value: object) -> Node:
    """Back through operations that keep the order of the elements."""
    node = expect_node(value, "expected a tensor")
    while is_call(node, *_RESHAPES):
        node = expect_node(node.args[0], "expected a tensor")
    return node


def flattened_source(value: object, columns: int, reason: str) -> Node:
    """The [rows, ``columns``] tensor that ``value`` is a flattened view of."""
    node = expect_node(value, reason)
    while len(shape_of(node)) != 2 or shape_of(node)[1] != columns:
        require(is_call(node, *_RESHAPES), reason)
        node = expect_node(node.args[0], reason)
    return node


def indexed_by(value: object, reason: str) -> tuple[Node, Node]:
    """``source[index]`` along the first dimension only: (source, index)."""
    node = expect_call(value, reason, aten.index.Tensor)
    source, indices = node.args[0], node.args[1]
    require(isinstance(indices, list | tuple) and len(indices) == 1, reason)
    return expect_node(source, reason), expect_node(indices[0], reason)  # type: ignore[index]


def constant(value: object) -> float:
    """A Python number, also where dynamic shapes made a module's float symbolic.

    Reading a symbolic float specialises it: Dynamo then guards on its value and compiles again
    should the module change it.
    """
    if isinstance(value, Node):
        value = value.meta.get("val")
        if isinstance(value, torch.Tensor):
            raise NoMatch("a constant of the activation is a tensor")
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, torch.SymFloat | torch.SymInt):
        try:
            return float(value)
        except Exception as error:
            raise NoMatch("a constant of the activation is not known at compile time") from error
    raise NoMatch(f"a constant of the activation is {value!r}")
