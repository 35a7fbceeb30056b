"""Rules of ops whose operands broadcast against each other: pointwise ops, products, attention."""

from collections.abc import Iterable

import torch

from coxcompile.passes.batch_rules.call import (
    Batch,
    Call,
    CannotDivide,
    Divided,
    rule_for,
    shape_of,
)

aten = torch.ops.aten


@rule_for(
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.where.Scalar,
    aten.masked_fill.Tensor,
    aten.polar.default,
    aten.copy.default,
    aten.__and__.Tensor,
    aten.__and__.Scalar,
    aten.__or__.Tensor,
    aten.__or__.Scalar,
    aten.__xor__.Tensor,
    aten.floor_divide.default,
    aten._to_copy.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
)
def pointwise(call: Call) -> Divided:
    """Each element of the result depends on one element of each operand. Also any op PyTorch tags
    ``pointwise``."""
    return _broadcast(call, call.tensors())


def _broadcast(call: Call, names: Iterable[str], trailing: int = 0) -> Divided:
    """Operands aligned at their last dimensions, the ``trailing`` last of which the op combines."""
    operands = call.tensors(names)
    ranks = {name: len(shape_of(value)) for name, value in operands.items()}
    rank = max(ranks.values())
    aligned = {
        Batch(batch.dim + rank - ranks[name], batch.per_sequence)
        for name, value in operands.items()
        if (batch := call.batch(value)) is not None
    }
    if len(aligned) != 1:
        raise CannotDivide(
            "combines sequences with each other" if aligned else "takes the batch elsewhere"
        )
    (result,) = aligned
    if result.dim >= rank - trailing:
        raise CannotDivide(f"combines what lies along the batch (dimension {result.dim})")
    return Divided(
        {
            name: call.take(
                value,
                Batch(result.dim - rank + ranks[name], result.per_sequence),
                broadcasts=True,
            )
            for name, value in operands.items()
        },
        result,
    )


@rule_for(aten.linear.default)
def linear(call: Call) -> Divided:
    """Every row of ``input`` [..., inputs] by the same weight and bias."""
    batch = call.own("input")
    call.along(-1, len(shape_of(call["input"])), batch, "sums")
    return Divided({"input": call.take(call["input"], batch)}, batch)


@rule_for(aten.matmul.default, aten.mm.default, aten.bmm.default)
def matmul(call: Call) -> Divided:
    """Products of matrices: the batch among what broadcasts, or in one side's rows or columns."""
    left, right = call.target._schema.arguments[:2]
    sides = call.tensors((left.name, right.name))
    ranks = {name: len(shape_of(value)) for name, value in sides.items()}
    if min(ranks.values()) < 2:
        raise CannotDivide("multiplies a vector")
    rank = max(ranks.values())
    for name, kept in ((left.name, 2), (right.name, 1)):
        batch = call.batch(sides[name])
        if batch is not None and batch.dim == ranks[name] - kept:
            # Another operand with the batch is not among these arguments, and is refused.
            part = call.take(sides[name], batch)
            return Divided({name: part}, Batch(rank - kept, batch.per_sequence))
    return _broadcast(call, sides, trailing=2)


@rule_for(aten.scaled_dot_product_attention.default)
def attention(call: Call) -> Divided:
    """Attention [batch..., heads, queries, width]; each sequence attends to its own keys."""
    if call["dropout_p"]:
        raise CannotDivide(f"draws random numbers (dropout_p is {call['dropout_p']})")
    names = [name for name in ("query", "key", "value", "attn_mask") if call[name] is not None]
    # Grouped heads align with the query's without being as many.
    return _broadcast(call, names, trailing=3 if call["enable_gqa"] else 2)
