"""A partition traced on the CPU → the same partition for another device."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


def retarget(inner: GraphModule, device: torch.device) -> None:
    """Let the partition compute on ``device``: its factories, casts, and all fake values.

    Operators may leave their results in other strides there. So views become reshapes, and what the
    partition returns is brought into the strides it has on the CPU, which others were told.

    Raises whatever an operator raises whose inputs would then be on two devices.
    """
    if device.type == "cpu":
        return
    results = cast(Sequence[Node], inner.graph.output_node().args[0])
    strides = {result: result.meta["val"].stride() for result in results}
    for node in inner.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": device}
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        if node.op == "placeholder":
            node.meta["val"] = _moved(node.meta["val"], device)
        elif node.op == "call_function":
            node.meta["val"] = _computed(node)
    returned = tuple(_in_strides(result, strides[result]) for result in results)
    inner.graph.output_node().args = (returned,)
    inner.recompile()


def _moved(value: object, device: torch.device) -> object:
    if not isinstance(value, FakeTensor):
        return value
    with value.fake_mode:
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=device)


def _computed(node: Node) -> object:
    operator = cast(Callable[..., object], node.target)
    arguments, keywords = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    # From the results, since a factory has no tensors among its arguments.
    fakes = [value for value in tree_leaves(node.meta["val"]) if isinstance(value, FakeTensor)]
    with fakes[0].fake_mode if fakes else nullcontext():
        return operator(*arguments, **keywords)


def _in_strides(result: Node, strides: Sequence[int]) -> Node:
    """The result, or a copy of it whose dimensions lie in memory in the order of ``strides``."""
    if _layout(result.meta["val"], strides) == _layout(result.meta["val"]):
        return result
    order = sorted(range(len(strides)), key=lambda dimension: -strides[dimension])
    back = sorted(range(len(strides)), key=order.__getitem__)
    graph = result.graph
    with graph.inserting_before(graph.output_node()):
        ordered = graph.call_function(aten.permute.default, (result, order))
        dense = graph.call_function(
            aten.clone.default, (ordered,), {"memory_format": torch.contiguous_format}
        )
        copy = graph.call_function(aten.permute.default, (dense, back))
    for node in (ordered, dense, copy):
        node.meta = dict(result.meta)
        node.meta["val"] = _computed(node)
    return copy


def _layout(value: Tensor, strides: Sequence[int] | None = None) -> list[int]:
    """The strides that matter: those of dimensions with more than one element."""
    strides = value.stride() if strides is None else strides
    return [stride for stride, size in zip(strides, value.shape, strict=True) if size > 1]
