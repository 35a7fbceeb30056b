"""New nodes with their fake values, and whether a part's are those of the whole."""

import operator
from typing import Any

from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from coxcompile.passes.batch_rules.call import Batch
from coxcompile.passes.batch_rules.spans import Span


def call(graph: Graph, target: Any, args: Any, kwargs: dict[str, Any], name: str) -> Node:
    """Add a call at the graph's place of insertion, with what it gives in ``meta["val"]``."""
    node = graph.create_node("call_function", target, args, kwargs, name=name)
    fake_args, fake_kwargs = map_arg((args, kwargs), lambda value: value.meta["val"])
    # A tensor made from numbers alone has no operand to tell.
    fake_mode = detect_fake_mode((fake_args, fake_kwargs)) or detect_fake_mode(
        [other.meta.get("val") for other in graph.nodes]
    )
    assert fake_mode is not None
    with fake_mode:
        node.meta["val"] = target(*fake_args, **fake_kwargs)
    return node


def argument_names(node: Node) -> list[str]:
    """The names of a call's arguments by position."""
    if node.target is operator.getitem:
        return ["results", "position"]
    assert isinstance(node.target, OpOverload)
    return [argument.name for argument in node.target._schema.arguments]


def check_part(node: Node, copy: Node, batch: Batch, span: Span) -> None:
    """The copy's shapes are the node's but for the batch, its dtypes the node's.

    Raises:
        RuntimeError: they are not, which is an error in the rule.
    """
    results, copies = (tree_leaves(value.meta["val"]) for value in (node, copy))
    for result, copied in zip(results, copies, strict=True):
        expected = list(result.shape)
        expected[batch.dim] = batch.per_sequence * (span.stop - span.start)
        if list(copied.shape) != expected or copied.dtype != result.dtype:
            raise RuntimeError(
                f"micro_batch: {node.name} ({node.target}) gives {copied.dtype} "
                f"{list(copied.shape)} for sequences {span.start}-{span.stop}, not {result.dtype} "
                f"{expected}. Its rule in passes/batch_rules is wrong; please report it."
            )
