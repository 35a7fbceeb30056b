"""How ops follow the batch dimension: which can be computed for some sequences alone, and how."""

import operator
from collections.abc import Mapping

import torch
from torch._ops import OpOverload
from torch.fx import Node

# Imported for the rules they register.
from coxcompile.passes.batch_rules import (  # noqa: F401
    broadcasting,
    dimensions,
    indexing,
    shapes,
)
from coxcompile.passes.batch_rules.broadcasting import pointwise
from coxcompile.passes.batch_rules.call import (
    RULES,
    Batch,
    Call,
    CannotDivide,
    Cut,
    Divided,
    Elements,
    Rule,
)
from coxcompile.passes.batch_rules.division import Division
from coxcompile.passes.batch_rules.spans import Span, spans

__all__ = [
    "Batch",
    "CannotDivide",
    "Cut",
    "Divided",
    "Division",
    "Elements",
    "Span",
    "divide",
    "spans",
]


def divide(node: Node, batches: Mapping[Node, Batch], sequences: int) -> Divided:
    """How to compute ``node``, some of whose operands have the batch, for some sequences alone.

    Args:
        node: a call; every node has its fake value in ``meta["val"]``.
        batches: where the batch lies, for each value that has it.
        sequences: the batch's size, 2 or more.

    Raises:
        CannotDivide: the op mixes sequences, or no rule says how it treats them.
    """
    if node.target is operator.getitem:
        (results, _) = node.args
        assert isinstance(results, Node)
        return Divided({"results": Cut(results, batches[results])}, batches[results])
    rule = _rule(node)
    call = Call(node, batches, sequences)
    divided = rule(call)
    for name, value in call.arguments.items():
        if name not in divided.arguments and divided.once is None and _has_batch(value, batches):
            raise CannotDivide(f"takes the batch in {name}")
    return divided


def _rule(node: Node) -> Rule:
    target = node.target
    if not isinstance(target, OpOverload):
        raise CannotDivide("is no op")
    if target in RULES:
        return RULES[target]
    if torch.Tag.nondeterministic_seeded in target.tags:
        raise CannotDivide("draws random numbers")
    if target._schema.is_mutable:
        raise CannotDivide("writes in place")
    if torch.Tag.pointwise not in target.tags:
        raise CannotDivide("has no rule")
    return pointwise


def _has_batch(value: object, batches: Mapping[Node, Batch]) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_batch(part, batches) for part in value)
    return isinstance(value, Node) and value in batches
