"""Which activation stands between an expert's two projections, read off as an expression.

The nodes between the projections are written as a nested tuple over "gate" and "up", with products
flattened and sorted, and looked up. Anything that is not in the table is no match: a new activation
is one line here and one case in csrc/activation.cpp.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.fx import Node

from coxcompile.passes.moe_forms.patterns import (
    NoMatch,
    argument,
    aten,
    constant,
    expect_node,
    is_call,
    require,
    shape_of,
    strip_reshapes,
)

Expression = str | float | tuple["Expression", ...]


@dataclass(frozen=True)
class MatchedActivation:
    """An activation over the [S, 2 I] result ``source`` of the first projection."""

    name: str
    gate_layout: str
    source: Node
    alpha: float = 1.0
    limit: float | None = None


def match_activation(activated: Node) -> MatchedActivation:
    """Recognise ``activated`` [S, I] as a gated activation of one [S, 2 I] tensor."""
    reader = _Reader()
    expression = reader.read(activated)
    require(reader.source is not None and reader.layout, "the activation has no gate/up split")
    assert reader.source is not None
    assert reader.layout is not None
    if name := _PLAIN.get(expression):
        return MatchedActivation(name, reader.layout, reader.source)
    alpha, limit = _read_swigluoai(expression)
    return MatchedActivation("swigluoai", reader.layout, reader.source, alpha, limit)


def _read_swigluoai(expression: Expression) -> tuple[float, float]:
    """(alpha, limit) of GPT-OSS's activation."""
    unknown = f"the activation {expression} is not one of silu, gelu, gelu_tanh, relu, swigluoai"
    try:
        factors: dict[str, Any] = {str(factor[0]): factor for factor in cast(Any, expression)[1:]}
        limit = factors["clamp"][3]
        alpha = next(value for value in factors["sigmoid"][1][1:] if isinstance(value, float))
    except (KeyError, IndexError, TypeError, StopIteration):
        raise NoMatch(unknown) from None
    require(isinstance(limit, float), unknown)
    gate = ("clamp", "gate", -math.inf, limit)
    up = ("clamp", "up", -limit, limit)
    expected = _product([_sum([up, 1.0]), gate, ("sigmoid", _product([gate, alpha]))])
    require(expression == expected, unknown)
    return alpha, float(limit)


def _product(factors: list[Expression]) -> Expression:
    flat: list[Expression] = []
    for factor in factors:
        if isinstance(factor, tuple) and factor[0] == "mul":
            flat.extend(factor[1:])
        else:
            flat.append(factor)
    return ("mul", *sorted(flat, key=repr))


def _sum(terms: list[Expression]) -> Expression:
    return ("add", *sorted(terms, key=repr))


_PLAIN: dict[Expression, str] = {
    _product([("silu", "gate"), "up"]): "silu",
    _product(["gate", ("sigmoid", "gate"), "up"]): "silu",
    _product([("gelu", "gate", "none"), "up"]): "gelu",
    _product([("gelu", "gate", "tanh"), "up"]): "gelu_tanh",
    _product([("relu", "gate"), "up"]): "relu",
}


class _Reader:
    """Reads nodes into an expression, and notes which tensor is split into gate and up, and how."""

    def __init__(self) -> None:
        self.source: Node | None = None
        self.layout: str | None = None

    def read(self, value: object) -> Expression:
        node = strip_reshapes(value)
        if leaf := self._leaf(node):
            return leaf
        arguments = node.args
        if is_call(node, aten.silu.default):
            return ("silu", self.read(arguments[0]))
        if is_call(node, aten.sigmoid.default):
            return ("sigmoid", self.read(arguments[0]))
        if is_call(node, aten.relu.default):
            return ("relu", self.read(arguments[0]))
        if is_call(node, aten.gelu.default):
            return ("gelu", self.read(arguments[0]), node.kwargs.get("approximate", "none"))  # type: ignore[return-value]
        if is_call(node, aten.mul.Tensor):
            return _product([self._operand(a) for a in arguments[:2]])
        if is_call(node, aten.add.Tensor) and not node.kwargs:
            return _sum([self._operand(a) for a in arguments[:2]])
        if is_call(node, aten.clamp.default):
            low, high = argument(node, 1, "min"), argument(node, 2, "max")
            return (
                "clamp",
                self.read(arguments[0]),
                -math.inf if low is None else constant(low),
                math.inf if high is None else constant(high),
            )
        raise NoMatch(f"the activation uses {node.target}")

    def _operand(self, value: object) -> Expression:
        is_tensor = isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor)
        return self.read(value) if is_tensor else constant(value)

    def _leaf(self, node: Node) -> Expression | None:
        """ "gate" or "up" if ``node`` is a half of the projection, else None."""
        if len(node.args) > 1 and is_call(node.args[0], aten.split.Tensor, aten.chunk.default):
            split = expect_node(node.args[0], "expected a tensor")
            require(
                argument(split, 2, "dim", 0) in (-1, 1) and isinstance(node.args[1], int),
                "gate and up are split along another dimension",
            )
            source = expect_node(split.args[0], "expected a tensor")
            require(
                2 * shape_of(node)[-1] == shape_of(source)[-1],
                "the projection is not split into two halves",
            )
            return self._note(source, "concatenated", int(node.args[1]))  # type: ignore[arg-type]
        if is_call(node, aten.slice.Tensor):
            source = expect_node(node.args[0], "expected a tensor")
            width = shape_of(source)[-1]
            start, end = argument(node, 2, "start") or 0, argument(node, 3, "end")
            require(argument(node, 1, "dim", 0) in (-1, 1), "gate and up are split along tokens")
            reaches_end = end is None or (isinstance(end, int) and end >= width)
            if argument(node, 4, "step", 1) == 2:
                require(start in (0, 1) and reaches_end, "gate and up are not interleaved")
                return self._note(source, "interleaved", int(start))
            if start == 0 and 2 * end == width:
                return self._note(source, "concatenated", 0)
            require(2 * start == width and reaches_end, "gate and up are not halves")
            return self._note(source, "concatenated", 1)
        return None

    def _note(self, source: Node, layout: str, half: int) -> Expression:
        source = strip_reshapes(source)
        require(self.source in (None, source), "gate and up come from different tensors")
        require(self.layout in (None, layout), "gate and up are split in two ways")
        self.source, self.layout = source, layout
        return ("gate", "up")[half]
