"""Rules of ops that read or write at indices, which must not count along the batch."""

from collections.abc import Sequence

import torch

from coxcompile.passes.batch_rules.call import (
    Batch,
    Call,
    CannotDivide,
    Cut,
    Divided,
    is_tensor,
    rule_for,
    shape_of,
)

aten = torch.ops.aten


def _together(call: Call, *names: str) -> tuple[dict[str, object], Batch]:
    """The operands ``names`` cut alike: the same dimension, the same number of elements along it.

    Numbers (a value to write) are left as they are.
    """
    operands = call.tensors(names)
    batch = next((own for value in operands.values() if (own := call.batch(value))), None)
    if batch is None:
        raise CannotDivide(f"takes the batch in other operands than {', '.join(names)}")
    return {name: call.take(value, batch) for name, value in operands.items()}, batch


@rule_for(
    aten.gather.default,
    aten.scatter.value,
    aten.scatter.src,
    aten.scatter_add.default,
    aten.scatter_reduce.two,
)
def at_own_indices(call: Call) -> Divided:
    """Reads or writes along ``dim``, each element at its own index."""
    return _along_dim(call, "self", "index", "src")


@rule_for(aten.index_copy.default, aten.index_add.default, aten.index_select.default)
def at_same_indices(call: Call) -> Divided:
    """Reads or writes along ``dim``, at the same indices for all sequences."""
    return _along_dim(call, "self", "source")


def _along_dim(call: Call, *names: str) -> Divided:
    parts, batch = _together(call, *(name for name in names if name in call.arguments))
    call.along(call["dim"], len(shape_of(call["self"])), batch, "reads or writes at indices")
    return Divided(parts, batch)


@rule_for(aten.slice_scatter.default)
def slice_scatter(call: Call) -> Divided:
    """Writes ``src`` to a range of ``dim``."""
    parts, batch = _together(call, "self", "src")
    call.along(call["dim"], len(shape_of(call["self"])), batch, "writes")
    return Divided(parts, batch)


@rule_for(aten.select_scatter.default)
def select_scatter(call: Call) -> Divided:
    """Writes ``src``, which lacks ``dim``, to one place of it."""
    rank = len(shape_of(call["self"]))
    written = call["dim"] % rank
    batch = call.batch(call["self"])
    if batch is None:
        source = call.own("src")
        batch = Batch(source.dim + (written <= source.dim), source.per_sequence)
    call.along(written, rank, batch, "writes")
    in_source = Batch(batch.dim - (written < batch.dim), batch.per_sequence)
    return Divided(
        {"self": call.take(call["self"], batch), "src": call.take(call["src"], in_source)}, batch
    )


@rule_for(aten.embedding.default)
def embedding(call: Call) -> Divided:
    """A row of ``weight`` for each index; their dimension comes last."""
    batch = call.own("indices")
    return Divided({"indices": call.take(call["indices"], batch)}, batch)


@rule_for(aten.index.Tensor)
def index(call: Call) -> Divided:
    """Reads at the same indices for all sequences."""
    batch = call.own("self")
    moved = _indexed(call, batch)[0]
    return Divided({"self": call.take(call["self"], batch)}, moved)


@rule_for(aten.index_put.default)
def index_put(call: Call) -> Divided:
    """Writes ``values``, which broadcast to what the indices read, for all sequences alike."""
    batch = call.batch(call["self"])
    if batch is None:
        batch = _where_values_go(call, call.own("values"))
    moved, rank = _indexed(call, batch)
    before = rank - len(shape_of(call["values"]))
    in_values = Batch(moved.dim - before, moved.per_sequence)
    return Divided(
        {
            "self": call.take(call["self"], batch),
            "values": call.take(call["values"], in_values, broadcasts=True),
        },
        batch,
    )


def _where_values_go(call: Call, values: Batch) -> Batch:
    """The batch's place in ``self``, whose every dimension's place in the values is known."""
    for dim, indexed in enumerate(_padded(call)):
        if indexed is None:
            batch = Batch(dim, values.per_sequence)
            moved, rank = _indexed(call, batch)
            if moved.dim - (rank - len(shape_of(call["values"]))) == values.dim:
                return batch
    raise CannotDivide("writes along the batch")


def _padded(call: Call) -> Sequence[object]:
    missing = len(shape_of(call["self"])) - len(call["indices"])
    return [*call["indices"], *[None] * missing]


def _indexed(call: Call, batch: Batch) -> tuple[Batch, int]:
    """Where the batch lies in what the indices read, and how many dimensions that has."""
    indices = _padded(call)
    places = [dim for dim, value in enumerate(indices) if value is not None]
    tensors = [indices[dim] for dim in places]
    if not places or places != list(range(places[0], places[-1] + 1)):
        raise CannotDivide("reads or writes at indices of dimensions apart from each other")
    if not all(
        is_tensor(value) and value.meta["val"].dtype in (torch.int64, torch.int32)  # type: ignore[attr-defined]
        for value in tensors
    ):
        raise CannotDivide("reads or writes where a mask says")
    if batch.dim in places:
        raise CannotDivide(f"reads or writes at indices along the batch (dimension {batch.dim})")
    index_rank = max(len(shape_of(value)) for value in tensors)  # type: ignore[arg-type]
    change = index_rank - len(places)
    moved = batch.dim + change if batch.dim > places[-1] else batch.dim
    return Batch(moved, batch.per_sequence), len(indices) + change


@rule_for(aten.copy_.default)
def write_back(call: Call) -> Divided:
    """Writes the sequences' part of an input in place; normalize puts these at the end."""
    parts, batch = _together(call, "self", "src")
    if call["self"].op not in ("placeholder", "get_attr"):
        raise CannotDivide(f"writes {call['self'].name} in place, which is no input")
    if shape_of(call["self"]) != shape_of(call["src"]):
        raise CannotDivide("broadcasts what it writes in place")
    return Divided(parts, batch)


@rule_for(torch.ops.coxmoe.coalesced_experts.default)
def experts(call: Call) -> Divided:
    """The routed experts of each token [tokens, hidden]."""
    parts, batch = _together(call, "hidden_states", "expert_ids", "routing_weights")
    if batch.dim != 0:
        raise CannotDivide(f"takes the batch in dimension {batch.dim}")
    if not all(isinstance(part, Cut) for part in parts.values()):
        raise CannotDivide("takes tokens without the batch")
    return Divided(parts, batch)
