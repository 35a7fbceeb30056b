"""Rules of ops that work along some dimensions of one tensor, which must not be the batch's."""

from typing import Any

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


def _first(call: Call) -> tuple[str, Batch, int]:
    """The first operand's name, its batch and its rank."""
    name = call.target._schema.arguments[0].name
    return name, call.own(name), len(shape_of(call[name]))


@rule_for(
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    aten.topk.default,
    aten.sort.default,
    aten.sort.stable,
    aten.argsort.default,
    aten.cumsum.default,
    aten.cumprod.default,
    aten.logcumsumexp.default,
    aten.flip.default,
    aten.roll.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.glu.default,
)
def within(call: Call) -> Divided:
    """Each of the results keeps all dimensions; elements move or mix along ``dim`` alone."""
    name, batch, rank = _first(call)
    dims = call["dims"] if "dims" in call.arguments else call["dim"]
    dims = dims if isinstance(dims, list | tuple) else [dims]
    if not dims:
        raise CannotDivide("works on all elements together")
    for dim in dims:
        call.along(dim, rank, batch, "works")
    return Divided({name: call.take(call[name], batch)}, batch)


@rule_for(
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.prod.dim_int,
    aten.amax.default,
    aten.amin.default,
    aten.max.dim,
    aten.min.dim,
    aten.argmax.default,
    aten.argmin.default,
    aten.any.dim,
    aten.any.dims,
    aten.all.dim,
    aten.all.dims,
    aten.logsumexp.default,
    aten.linalg_vector_norm.default,
    aten.var.correction,
    aten.std.correction,
)
def reduce(call: Call) -> Divided:
    """Each of the results lacks the dimensions ``dim``, or has them with size 1 (``keepdim``)."""
    name, batch, rank = _first(call)
    dims = call["dim"] if isinstance(call["dim"], list | tuple) else [call["dim"]]
    if not dims or dims == [None]:
        raise CannotDivide("reduces all elements together")
    reduced = {call.along(dim, rank, batch, "reduces") for dim in dims}
    removed = 0 if call["keepdim"] else sum(dim < batch.dim for dim in reduced)
    result = Batch(batch.dim - removed, batch.per_sequence)
    return Divided({name: call.take(call[name], batch)}, result)


@rule_for(aten.select.int, aten.unbind.int)
def take_apart(call: Call) -> Divided:
    """Each of the results lacks the dimension ``dim``."""
    name, batch, rank = _first(call)
    dim = call.along(call["dim"], rank, batch, "selects")
    result = Batch(batch.dim - (dim < batch.dim), batch.per_sequence)
    return Divided({name: call.take(call[name], batch)}, result)


@rule_for(aten.slice.Tensor)
def slice_(call: Call) -> Divided:
    """A range of ``dim``; all of the batch, in a micro-batch as well, if it is the batch's."""
    name, batch, rank = _first(call)
    size = shape_of(call[name])[batch.dim]
    start, end, step = call["start"], call["end"], call["step"]
    whole = start in (None, 0) and (end is None or end >= size) and step == 1
    if not whole:
        call.along(call["dim"], rank, batch, "takes a range")
    return Divided({name: call.take(call[name], batch)}, batch)


@rule_for(aten.layer_norm.default, aten.rms_norm.default)
def norm(call: Call) -> Divided:
    """The last dimensions, as many as ``normalized_shape`` has, are normalised together."""
    name, batch, rank = _first(call)
    for dim in range(rank - len(call["normalized_shape"]), rank):
        call.along(dim, rank, batch, "normalises")
    return Divided({name: call.take(call[name], batch)}, batch)


@rule_for(aten.tril.default, aten.triu.default)
def triangle(call: Call) -> Divided:
    """Part of each matrix is set to 0, by the place of its elements."""
    name, batch, rank = _first(call)
    for dim in (-2, -1):
        call.along(dim, rank, batch, "cuts out a triangle")
    return Divided({name: call.take(call[name], batch)}, batch)


@rule_for(aten.dropout.default)
def dropout(call: Call) -> Divided:
    """The identity, in inference."""
    if call["train"] and call["p"]:
        raise CannotDivide("draws random numbers")
    name, batch, _ = _first(call)
    return Divided({name: call.take(call[name], batch)}, batch)


@rule_for(aten.one_hot.default)
def one_hot(call: Call) -> Divided:
    """A last dimension is added, as long as ``num_classes`` says."""
    if call["num_classes"] < 0:
        raise CannotDivide("counts the classes that occur in any sequence")
    name, batch, _ = _first(call)
    return Divided({name: call.take(call[name], batch)}, batch)


@rule_for(aten.cat.default, aten.concat.default, aten.stack.default)
def join(call: Call) -> Divided:
    """Tensors after each other along ``dim``, which ``stack`` adds."""
    tensors: list[Any] = list(call["tensors"])
    batch = next((own for tensor in tensors if (own := call.batch(tensor)) is not None), None)
    assert batch is not None
    rank = len(shape_of(tensors[0]))
    if any(len(shape_of(tensor)) != rank for tensor in tensors):
        raise CannotDivide("joins tensors of different rank")
    parts = [call.take(tensor, batch) for tensor in tensors]
    if call.target == aten.stack.default:
        added = call["dim"] % (rank + 1)
        return Divided(
            {"tensors": parts}, Batch(batch.dim + (added <= batch.dim), batch.per_sequence)
        )
    call.along(call["dim"], rank, batch, "joins")
    return Divided({"tensors": parts}, batch)
