"""Random calls for the tests of the batch rules: an op, its operands and where each has the batch.

    target, args, kwargs, divides = CASES["mean"](draw, whole)

``draw`` draws from a hypothesis strategy; ``whole`` is an operand with the batch. ``divides`` is
whether a rule must divide the call (True), must refuse it (False), or may do either (None).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from coxcompile.passes.batch_rules import Batch

aten = torch.ops.aten
Draw = Callable[..., Any]
Case = Callable[[Draw, "Operand"], tuple[Any, tuple[Any, ...], dict[str, Any], bool | None]]


@dataclass(frozen=True)
class Operand:
    """A tensor and where it has the batch; None if it is shared."""

    tensor: Tensor
    batch: Batch | None = None

    @property
    def shape(self) -> list[int]:
        """The tensor's."""
        return list(self.tensor.shape)

    @property
    def rank(self) -> int:
        """The tensor's number of dimensions."""
        return self.tensor.dim()

    def like(self, shape: list[int], dim: int, *, shared: bool) -> "Operand":
        """Another tensor with this one's batch in ``dim``, or shared."""
        assert self.batch is not None
        batch = None if shared else Batch(dim, self.batch.per_sequence)
        return Operand(torch.randn(shape), batch)

    def indices(self, shape: list[int], below: int, *, shared: bool) -> "Operand":
        """Indices in [0, ``below``) with this operand's batch, or shared."""
        return Operand(torch.randint(0, below, shape), None if shared else self.batch)


@st.composite
def operands(draw: Draw, sequences: int) -> Operand:
    """A random operand of rank 2 to 4 with the batch in a random dimension."""
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    dim = draw(st.integers(0, len(shape) - 1))
    per_sequence = draw(st.integers(1, 2))
    shape[dim] = sequences * per_sequence
    return Operand(torch.randn(shape), Batch(dim, per_sequence))


def _dim(draw: Draw, x: Operand) -> int:
    """Any dimension, counted from either end."""
    return draw(st.integers(-x.rank, x.rank - 1))


def _is_other(dim: int, x: Operand) -> bool:
    assert x.batch is not None
    return dim % x.rank != x.batch.dim


def _add(draw: Draw, x: Operand) -> Any:
    assert x.batch is not None
    shape = [draw(st.sampled_from([1, size])) for size in x.shape]
    dropped = draw(st.integers(0, x.rank - 1))
    has_batch = dropped <= x.batch.dim and shape[x.batch.dim] == x.shape[x.batch.dim]
    shared = not has_batch or draw(st.booleans())
    y = x.like(shape[dropped:], x.batch.dim - dropped, shared=shared)
    target = draw(st.sampled_from([aten.add.Tensor, aten.mul.Tensor, aten.maximum.default]))
    return target, (x, y) if draw(st.booleans()) else (y, x), {}, True


def _reduction(draw: Draw, x: Operand) -> Any:
    dims = draw(st.lists(st.integers(0, x.rank - 1), min_size=1, unique=True))
    target = draw(st.sampled_from([aten.mean.dim, aten.sum.dim_IntList, aten.amax.default]))
    divides = all(_is_other(dim, x) for dim in dims)
    return target, (x, dims, draw(st.booleans())), {}, divides


def _single_reduction(draw: Draw, x: Operand) -> Any:
    dim = _dim(draw, x)
    target = draw(st.sampled_from([aten.max.dim, aten.argmax.default, aten.any.dim]))
    return target, (x, dim, draw(st.booleans())), {}, _is_other(dim, x)


_ALONG: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "softmax": lambda dim: (aten.softmax.int, dim),
    "log_softmax": lambda dim: (aten.log_softmax.int, dim),
    "cumsum": lambda dim: (aten.cumsum.default, dim),
    "sort": lambda dim: (aten.sort.default, dim),
    "topk": lambda dim: (aten.topk.default, 1, dim),
    "flip": lambda dim: (aten.flip.default, [dim]),
    "roll": lambda dim: (aten.roll.default, [1], [dim]),
    "split": lambda dim: (aten.split.Tensor, 2, dim),
    "chunk": lambda dim: (aten.chunk.default, 2, dim),
    "unbind": lambda dim: (aten.unbind.int, dim),
    "select": lambda dim: (aten.select.int, dim, 0),
    "slice": lambda dim: (aten.slice.Tensor, dim, 0, 1),
}


def _along(name: str, draw: Draw, x: Operand) -> Any:
    dim = _dim(draw, x)
    target, *args = _ALONG[name](dim)
    return target, (x, *args), {}, _is_other(dim, x)


def _joined(draw: Draw, x: Operand) -> list[Operand]:
    assert x.batch is not None
    other = x.like(x.shape, x.batch.dim, shared=draw(st.booleans()))
    return [x, other] if draw(st.booleans()) else [other, x]


def _cat(draw: Draw, x: Operand) -> Any:
    dim = _dim(draw, x)
    return aten.cat.default, (_joined(draw, x), dim), {}, _is_other(dim, x)


def _stack(draw: Draw, x: Operand) -> Any:
    dim = draw(st.integers(-x.rank - 1, x.rank))
    return aten.stack.default, (_joined(draw, x), dim), {}, True


def _view(draw: Draw, x: Operand) -> Any:
    """Merges a run of dimensions, then divides one: what comes before the batch may get mixed."""
    assert x.batch is not None
    first = draw(st.integers(0, x.rank - 1))
    last = draw(st.integers(first, x.rank - 1))
    shape = [*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]]
    divides = None
    if all(size == 1 for size in x.shape[first : x.batch.dim]) or first > x.batch.dim:
        divides = True
    if last >= x.batch.dim and draw(st.booleans()):
        divided = draw(st.integers(0, len(shape) - 1))
        factors = [d for d in range(1, shape[divided] + 1) if shape[divided] % d == 0]
        factor = draw(st.sampled_from(factors))
        shape[divided : divided + 1] = [factor, shape[divided] // factor]
        divides = None
    if draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] = -1
    return draw(st.sampled_from([aten.view.default, aten.reshape.default])), (x, shape), {}, divides


def _widened(draw: Draw, x: Operand) -> Any:
    return aten.expand.default, [2, *(draw(st.sampled_from([-1, size])) for size in x.shape)]


_MOVED: dict[str, Callable[[Draw, Operand], Any]] = {
    "transpose": lambda draw, x: (aten.transpose.int, _dim(draw, x), _dim(draw, x)),
    "permute": lambda draw, x: (aten.permute.default, draw(st.permutations(range(x.rank)))),
    "unsqueeze": lambda draw, x: (
        aten.unsqueeze.default,
        draw(st.integers(-x.rank - 1, x.rank)),
    ),
    "expand": _widened,
    "repeat": lambda draw, x: (aten.repeat.default, [2, *[1] * x.rank]),
    "clone": lambda draw, x: (aten.clone.default,),
    "zeros_like": lambda draw, x: (aten.zeros_like.default,),
    "new_ones": lambda draw, x: (aten.new_ones.default, x.shape),
}


def _moved(name: str, draw: Draw, x: Operand) -> Any:
    target, *args = _MOVED[name](draw, x)
    return target, (x, *args), {}, True


def _squeeze(draw: Draw, x: Operand) -> Any:
    dim = _dim(draw, x)
    return aten.squeeze.dim, (x, dim), {}, _is_other(dim, x)


def _triangle(draw: Draw, x: Operand) -> Any:
    return aten.tril.default, (x,), {}, _is_other(-1, x) and _is_other(-2, x)


_AT_INDICES: dict[str, Any] = {
    "gather": aten.gather.default,
    "scatter": aten.scatter.value,
    "scatter of a source": aten.scatter.src,
    "index_select": aten.index_select.default,
    "index_copy": aten.index_copy.default,
    "index_add": aten.index_add.default,
    "slice_scatter": aten.slice_scatter.default,
}


def _at_indices(name: str, draw: Draw, x: Operand) -> Any:
    assert x.batch is not None
    dim = draw(st.integers(0, x.rank - 1))
    size = x.shape[dim]
    shape = list(x.shape)
    shape[dim] = draw(st.integers(1, size))
    source = x.like(shape, x.batch.dim, shared=draw(st.booleans()))
    row = Operand(torch.randperm(size)[: shape[dim]])
    # Every place is written once, or the result depends on the order.
    places = torch.argsort(torch.rand(x.shape), dim).narrow(dim, 0, shape[dim])
    index = Operand(places.contiguous(), None if draw(st.booleans()) else x.batch)
    arguments = {
        "gather": (x, dim, index),
        "scatter": (x, dim, index, 2.0),
        "scatter of a source": (x, dim, index, source),
        "index_select": (x, dim, row),
        # Caches are written so.
        "index_copy": (_shared(draw, x, source), dim, row, source),
        "index_add": (x, dim, row, source),
        "slice_scatter": (_shared(draw, x, source), source, dim, 0, shape[dim]),
    }
    return _AT_INDICES[name], arguments[name], {}, _is_other(dim, x)


def _shared(draw: Draw, x: Operand, other: Operand) -> Operand:
    """``x``, perhaps without its batch if ``other`` has it."""
    return Operand(x.tensor) if other.batch is not None and draw(st.booleans()) else x


def _index_put(draw: Draw, x: Operand) -> Any:
    """Reads or writes at indices of one dimension or of two neighbours."""
    assert x.batch is not None
    first = draw(st.integers(0, x.rank - 1))
    last = draw(st.integers(first, min(first + 1, x.rank - 1)))
    index_shape = draw(st.sampled_from([[1], [2], [2, 1]]))
    indices: list[Operand | None] = [None] * first
    indices += [
        Operand(torch.zeros(index_shape, dtype=torch.int64)) for _ in range(first, last + 1)
    ]
    divides = not first <= x.batch.dim <= last
    if draw(st.booleans()):
        return aten.index.Tensor, (x, indices), {}, divides
    shape = [*x.shape[:first], *index_shape, *x.shape[last + 1 :]]
    moved = x.batch.dim
    if moved > last:
        moved += len(index_shape) - (last - first + 1)
    # One value for all places, which may be the same.
    shape[first : first + len(index_shape)] = [1] * len(index_shape)
    values = x.like(shape, moved, shared=not divides or draw(st.booleans()))
    return aten.index_put.default, (_shared(draw, x, values), indices, values), {}, divides


def _matmul(draw: Draw, x: Operand) -> Any:
    assert x.batch is not None
    columns = draw(st.integers(1, 3))
    leading = [draw(st.sampled_from([1, size])) for size in x.shape[:-2]]
    shape = [*leading[draw(st.integers(0, len(leading))) :], x.shape[-1], columns]
    at = x.batch.dim - (x.rank - len(shape))
    divides = _is_other(-1, x)
    has_batch = 0 <= at < len(shape) - 2 and shape[at] == x.shape[x.batch.dim]
    y = x.like(shape, at, shared=not has_batch or draw(st.booleans()))
    return aten.matmul.default, (x, y), {}, divides


def _linear(draw: Draw, x: Operand) -> Any:
    assert x.batch is not None
    weight = Operand(torch.randn(3, x.shape[-1]))
    if draw(st.booleans()):
        return aten.layer_norm.default, (x, [x.shape[-1]]), {}, _is_other(-1, x)
    if draw(st.booleans()):
        table = Operand(torch.randn(5, 2))
        return aten.embedding.default, (table, x.indices(x.shape, 5, shared=False)), {}, True
    return aten.linear.default, (x, weight), {}, _is_other(-1, x)


def _attention(draw: Draw, x: Operand) -> Any:
    assert x.batch is not None
    sequences = x.shape[x.batch.dim] // x.batch.per_sequence
    batch = Batch(0, 1)
    heads, queries, keys = draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)))
    grouped = draw(st.booleans())
    query = Operand(torch.randn(sequences, heads * (1 + grouped), queries, 4), batch)
    key, value = (Operand(torch.randn(sequences, heads, keys, 4), batch) for _ in range(2))
    mask_shape = draw(
        st.sampled_from([[queries, keys], [1, 1, 1, keys], [sequences, 1, queries, keys]])
    )
    has_batch = len(mask_shape) == 4 and mask_shape[0] == sequences
    mask = Operand(torch.randn(mask_shape), batch if has_batch and draw(st.booleans()) else None)
    kwargs = {"scale": draw(st.sampled_from([None, 0.3])), "enable_gqa": grouped}
    return aten.scaled_dot_product_attention.default, (query, key, value, mask), kwargs, True


CASES: dict[str, Case] = {
    "pointwise": _add,
    "reduction": _reduction,
    "reduction of one dimension": _single_reduction,
    **{name: partial(_along, name) for name in _ALONG},
    "cat": _cat,
    "stack": _stack,
    "view": _view,
    **{name: partial(_moved, name) for name in _MOVED},
    "squeeze": _squeeze,
    "tril": _triangle,
    **{name: partial(_at_indices, name) for name in _AT_INDICES},
    "index, index_put": _index_put,
    "matmul": _matmul,
    "linear, layer_norm, embedding": _linear,
    "attention": _attention,
}
