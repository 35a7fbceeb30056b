"""A partition traced on the CPU → the same partition for another device."""

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg


def retarget(inner: GraphModule, device: torch.device) -> None:
    """Let the partition compute on ``device``: its factories, casts, and all fake values.

    Raises whatever an operator raises whose inputs would then be on two devices.
    """
    if device.type == "cpu":
        return
    for node in inner.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": device}
        if node.op == "placeholder":
            node.meta["val"] = _moved(node.meta["val"], device)
        elif node.op == "call_function":
            node.meta["val"] = _computed(node)
    inner.recompile()


def _moved(value: object, device: torch.device) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    with value.fake_mode:  # type: ignore[attr-defined]
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=device)


def _computed(node: Node) -> object:
    arguments, keywords = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    fakes = [a for a in torch.utils._pytree.tree_leaves(arguments) if isinstance(a, torch.Tensor)]
    if not fakes:
        return node.target(*arguments, **keywords)  # type: ignore[operator]
    with fakes[0].fake_mode:  # type: ignore[attr-defined]
        return node.target(*arguments, **keywords)  # type: ignore[operator]
