"""Products in a graph: of activations with a weight, or with each other."""

from collections.abc import Callable
from typing import cast

import torch
from torch.fx import Node

import coxcompile.ops  # noqa: F401  (defines the ops)
from coxcompile.passes.moe_forms.patterns import is_call

aten = torch.ops.aten

ATTENTION = aten.scaled_dot_product_attention.default
PRODUCTS = (aten.matmul.default, aten.mm.default, aten.bmm.default)
_LINEARS = (aten.linear.default, torch.ops.coxmoe.streamed_linear.default)


def weight_of(
    node: Node, is_activation: Callable[[Node], bool] = lambda node: "operation" in node.meta
) -> Node | None:
    """The weight that ``node`` multiplies activations by, as a linear does; None if it does not.

    Without ``is_activation``, reads what find_layers wrote.
    """
    if is_call(node, *_LINEARS):
        return cast(Node, node.args[1])
    if is_call(node, *PRODUCTS, aten.addmm.default):
        first, second = cast(tuple[Node, ...], node.args[-2:])
        if is_activation(first) != is_activation(second):
            return second if is_activation(first) else first
    return None


def multiplies_activations(node: Node) -> bool:
    """Whether ``node`` is a product of two activations, or attention as one operator.

    Reads what find_layers wrote.
    """
    return is_call(node, ATTENTION) or (is_call(node, *PRODUCTS) and weight_of(node) is None)


def is_float(node: Node) -> bool:
    """Whether ``node`` is a tensor of real or complex numbers."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
