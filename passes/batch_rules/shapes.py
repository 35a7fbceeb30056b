"""Rules of ops that lay the same elements out in another shape, or make tensors of a shape."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from coxcompile.passes.batch_rules.call import (
    Batch,
    Call,
    CannotDivide,
    Divided,
    Elements,
    is_tensor,
    rule_for,
    shape_of,
)

aten = torch.ops.aten


def _resized(sizes: Sequence[int], batch: Batch) -> list[Any]:
    """``sizes`` with the batch's replaced, unless it is to be inferred (-1)."""
    resized: list[Any] = list(sizes)
    if resized[batch.dim] != -1:
        resized[batch.dim] = Elements(batch.per_sequence)
    return resized


@rule_for(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def view(call: Call) -> Divided:
    """The batch stays the outermost of what follows it: as many elements lie before it as ever."""
    batch = call.own("self")
    sizes_name = call.target._schema.arguments[1].name
    shape, result = shape_of(call["self"]), shape_of(call.node)
    before = math.prod(shape[: batch.dim])
    if not math.prod(shape):
        raise CannotDivide("has no elements")
    for dim, size in enumerate(result):
        if math.prod(result[:dim]) == before and size % call.sequences == 0:
            viewed = Batch(dim, size // call.sequences)
            return Divided(
                {
                    "self": call.take(call["self"], batch),
                    sizes_name: _resized(call[sizes_name], viewed),
                },
                viewed,
            )
    raise CannotDivide(f"mixes the batch with other dimensions: {list(shape)} to {list(result)}")


@rule_for(aten.expand.default)
def expand(call: Call) -> Divided:
    """New dimensions come first; the batch itself is not repeated."""
    batch = call.own("self")
    sizes = call["size"]
    added = len(sizes) - len(shape_of(call["self"]))
    expanded = Batch(batch.dim + added, batch.per_sequence)
    return Divided(
        {"self": call.take(call["self"], batch), "size": _resized(sizes, expanded)}, expanded
    )


@rule_for(aten.repeat.default)
def repeat(call: Call) -> Divided:
    """New dimensions come first; the batch itself is not repeated."""
    batch = call.own("self")
    dim = batch.dim + len(call["repeats"]) - len(shape_of(call["self"]))
    if call["repeats"][dim] != 1:
        raise CannotDivide(f"repeats the batch (dimension {batch.dim})")
    return Divided({"self": call.take(call["self"], batch)}, Batch(dim, batch.per_sequence))


@rule_for(aten.permute.default)
def permute(call: Call) -> Divided:
    """The dimensions in another order."""
    batch = call.own("self")
    rank = len(shape_of(call["self"]))
    dim = [d % rank for d in call["dims"]].index(batch.dim)
    return Divided({"self": call.take(call["self"], batch)}, Batch(dim, batch.per_sequence))


@rule_for(aten.transpose.int)
def transpose(call: Call) -> Divided:
    """Two dimensions exchanged."""
    batch = call.own("self")
    rank = len(shape_of(call["self"]))
    first, second = call["dim0"] % rank, call["dim1"] % rank
    dim = {first: second, second: first}.get(batch.dim, batch.dim)
    return Divided({"self": call.take(call["self"], batch)}, Batch(dim, batch.per_sequence))


@rule_for(aten.unsqueeze.default)
def unsqueeze(call: Call) -> Divided:
    """A dimension of size 1 put before ``dim``."""
    batch = call.own("self")
    added = call["dim"] % (len(shape_of(call["self"])) + 1)
    moved = Batch(batch.dim + (added <= batch.dim), batch.per_sequence)
    return Divided({"self": call.take(call["self"], batch)}, moved)


@rule_for(aten.squeeze.dim, aten.squeeze.dims)
def squeeze(call: Call) -> Divided:
    """Dimensions of size 1 left out; the batch, never of size 1 here, would be in a micro-batch."""
    batch = call.own("self")
    shape = shape_of(call["self"])
    dims = call["dim"] if isinstance(call["dim"], list | tuple) else [call["dim"]]
    counted = {call.along(dim, len(shape), batch, "squeezes") for dim in dims}
    removed = sum(dim < batch.dim and shape[dim] == 1 for dim in counted)
    return Divided(
        {"self": call.take(call["self"], batch)}, Batch(batch.dim - removed, batch.per_sequence)
    )


@rule_for(aten.view_as_real.default)
def view_as_real(call: Call) -> Divided:
    """A last dimension is added."""
    batch = call.own("self")
    return Divided({"self": call.take(call["self"], batch)}, batch)


@rule_for(aten.view_as_complex.default)
def view_as_complex(call: Call) -> Divided:
    """The last dimension is taken away."""
    batch = call.own("self")
    call.along(-1, len(shape_of(call["self"])), batch, "pairs what lies")
    return Divided({"self": call.take(call["self"], batch)}, batch)


_CREATED: dict[OpOverload, OpOverload] = {
    aten.new_zeros.default: aten.zeros.default,
    aten.new_ones.default: aten.ones.default,
    aten.new_empty.default: aten.empty.memory_format,
    aten.new_full.default: aten.full.default,
}


@rule_for(*_CREATED)
def create(call: Call) -> Divided:
    """All elements are alike: the batch lies where it lies in ``self``, if the size fits there.

    Otherwise the tensor is made once, of ``self``'s dtype and device, and cut where it is used.
    """
    batch = call.own("self")
    sizes = list(call["size"])
    if sizes[batch.dim : batch.dim + 1] == [call.sequences * batch.per_sequence]:
        part = call.take(call["self"], batch)
        return Divided({"self": part, "size": _resized(sizes, batch)}, batch)
    value = call["self"].meta["val"]
    settings: dict[str, Any] = {
        name: call[name] for name in ("size", "fill_value") if name in call.arguments
    }
    settings["dtype"] = value.dtype if call["dtype"] is None else call["dtype"]
    settings["device"] = value.device if call["device"] is None else call["device"]
    return Divided(settings, None, once=_CREATED[call.target])


@rule_for(aten.type_as.default)
def type_as(call: Call) -> Divided:
    """``other`` gives its dtype alone."""
    other = call.batch(call["other"])
    batch = call.batch(call["self"])
    if batch is None:
        dtype = call["other"].meta["val"].dtype
        return Divided({"self": call["self"], "dtype": dtype}, None, once=aten._to_copy.default)
    assert is_tensor(call["other"])
    reference = call["other"] if other is None else call.take(call["other"], other)
    return Divided({"self": call.take(call["self"], batch), "other": reference}, batch)
