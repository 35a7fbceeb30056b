"""The rules of micro-batches: an op on some sequences gives those sequences of the op on all."""

import operator
from collections.abc import Sequence
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_map

from coxcompile.passes.batch_rules import Batch, CannotDivide, Division, Span, divide
from tests.batch_rule_cases import CASES, Operand, operands

aten = torch.ops.aten


def graph_of(target: Any, args: Any, kwargs: Any) -> tuple[GraphModule, dict[Node, Operand]]:
    """The graph of one call, and the operand that each placeholder stands for."""
    graph = Graph()
    fake_mode = FakeTensorMode()
    inputs: dict[Node, Operand] = {}

    def placeholder(value: object) -> object:
        if not isinstance(value, Operand):
            return value
        node = graph.placeholder(f"input{len(inputs)}")
        node.meta["val"] = fake_mode.from_tensor(value.tensor)
        inputs[node] = value
        return node

    args, kwargs = tree_map(placeholder, (args, kwargs))
    node = graph.call_function(target, args, kwargs)
    fake_args, fake_kwargs = tree_map(
        lambda value: value.meta["val"] if isinstance(value, Node) else value, (args, kwargs)
    )
    with fake_mode:
        node.meta["val"] = target(*fake_args, **fake_kwargs)
    results = [node]
    if not isinstance(node.meta["val"], Tensor):
        results = []
        for position, value in enumerate(node.meta["val"]):
            results.append(graph.call_function(operator.getitem, (node, position)))
            results[-1].meta["val"] = value
    graph.output(tuple(results))
    return GraphModule({}, graph), inputs


def run_divided(
    target: Any, args: Any, kwargs: Any, spans: Sequence[Span]
) -> tuple[list[Tensor], list[Tensor]]:
    """What the call gives on all sequences, and on each span's, joined."""
    graph_module, inputs = graph_of(target, args, kwargs)
    tensors = [operand.tensor for operand in inputs.values()]
    whole = graph_module(*tensors)
    batches = {node: x.batch for node, x in inputs.items() if x.batch is not None}
    divided = {}
    for node in graph_module.graph.find_nodes(op="call_function", target=target) + (
        graph_module.graph.find_nodes(op="call_function", target=operator.getitem)
    ):
        divided[node] = divide(node, batches, spans[-1].stop)
        if divided[node].batch is not None:
            batches[node] = divided[node].batch
    division = Division(graph_module, divided, spans, [Span(0, spans[-1].stop, 0)])
    for node in divided:
        division.divide(node)
    division.finish()
    graph_module.graph.lint()
    graph_module.recompile()
    return list(whole), list(graph_module(*tensors))


@pytest.mark.parametrize("name", CASES)
@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(data=st.data())
def test_parts_are_parts_of_the_whole(name: str, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 2), min_size=2, max_size=3))
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    spans = [
        Span(end - size, end, 0, number)
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    x = data.draw(operands(ends[-1]))
    target, args, kwargs, divides = CASES[name](data.draw, x)
    hypothesis.note(f"{target} {args} {kwargs}")
    try:
        whole, parts = run_divided(target, args, kwargs, spans)
    except CannotDivide:
        assert not divides
        return
    assert divides is not False
    for result, joined in zip(whole, parts, strict=True):
        assert joined.dtype == result.dtype
        torch.testing.assert_close(joined, result)


BATCH = Batch(0, 1)
HALVES = [Span(0, 2, 0, 0), Span(2, 4, 0, 1)]


def rows(*shape: int) -> Operand:
    return Operand(torch.randn(*shape), BATCH)


@pytest.mark.parametrize(
    ("target", "args", "reason"),
    [
        (aten.mean.default, (rows(4, 3),), "has no rule"),
        (aten.mean.dim, (rows(4, 3), None), "reduces all elements together"),
        (aten.flip.default, (rows(4, 3), [0]), r"works along the batch \(dimension 0\)"),
        (aten.roll.default, (rows(4, 3), [1]), "works on all elements together"),
        (aten.add.Tensor, (rows(4, 4), Operand(torch.randn(4, 4), Batch(1, 1))), "with each other"),
        (aten.matmul.default, (rows(4, 3), Operand(torch.randn(3, 4), Batch(1, 1))), "batch in"),
        (aten.linear.default, (Operand(torch.randn(5, 3)), rows(4, 3)), "other operands than inp"),
        (aten.linear.default, (rows(4, 3), rows(4, 3)), "takes the batch in weight"),
        (aten.bernoulli.p, (rows(4, 3), 0.5), "draws random numbers"),
        (aten.dropout.default, (rows(4, 3), 0.5, True), "draws random numbers"),
        (aten.add_.Tensor, (rows(4, 3), 1), "writes in place"),
        (aten.squeeze.dim, (rows(4, 3), 0), "squeezes along the batch"),
        (aten.view.default, (Operand(torch.randn(3, 4), Batch(1, 1)), [12]), "mixes the batch"),
        (aten.view.default, (rows(4, 3), [2, 6]), "mixes the batch"),
        (aten.repeat.default, (rows(4, 3), [2, 1]), "repeats the batch"),
        (aten.slice.Tensor, (rows(4, 3), 0, 1, 4), "takes a range along the batch"),
        (aten.one_hot.default, (Operand(torch.tensor([0, 1, 2, 1]), BATCH),), "classes that occur"),
        (
            aten.index.Tensor,
            (rows(4, 3), [Operand(torch.arange(4)), Operand(torch.tensor([0, 1, 2, 0]))]),
            "at indices along the batch",
        ),
        (
            aten.index.Tensor,
            (rows(4, 3), [None, Operand(torch.tensor([True, False, True]))]),
            "where a mask says",
        ),
    ],
)  # fmt: skip
def test_what_mixes_sequences_is_refused(target: Any, args: Any, reason: str) -> None:
    graph = Graph()
    batches: dict[Node, Batch] = {}

    def placeholder(value: object) -> object:
        if not isinstance(value, Operand):
            return value
        node = graph.placeholder("input")
        node.meta["val"] = value.tensor
        if value.batch is not None:
            batches[node] = value.batch
        return node

    node = graph.call_function(target, tree_map(placeholder, args))
    # No fake values: what some of these give depends on the values they take.
    tensors = tree_map(lambda x: x.tensor.clone() if isinstance(x, Operand) else x, args)
    node.meta["val"] = target(*tensors)
    with pytest.raises(CannotDivide, match=reason):
        divide(node, batches, 4)


def test_all_of_the_batch_is_no_range_of_it() -> None:
    whole, parts = run_divided(aten.slice.Tensor, (rows(4, 3), 0, 0, 4), {}, HALVES)
    assert torch.equal(whole[0], parts[0])


@pytest.mark.parametrize("shape", [[], [3, 4], [5]])
def test_constants_of_another_shape_are_made_once(shape: list[int]) -> None:
    target, args = aten.new_full.default, (rows(4, 3), shape, 7)
    whole, parts = run_divided(target, args, {"dtype": torch.int32}, HALVES)
    assert torch.equal(whole[0], parts[0])
    assert parts[0].dtype == torch.int32


def test_a_dtype_alone_brings_no_batch() -> None:
    table = Operand(torch.arange(3))
    whole, parts = run_divided(aten.type_as.default, (table, rows(4, 3)), {}, HALVES)
    assert torch.equal(whole[0], parts[0])
    assert parts[0].dtype == torch.float32


def test_complex_pairs() -> None:
    whole, parts = run_divided(aten.view_as_complex.default, (rows(4, 3, 2),), {}, HALVES)
    assert torch.equal(whole[0], parts[0])
    pairs = Operand(whole[0], BATCH)
    whole, parts = run_divided(aten.view_as_real.default, (pairs,), {}, HALVES)
    assert torch.equal(whole[0], parts[0])


def test_a_wrong_rule_is_found() -> None:
    graph_module, inputs = graph_of(aten.exp.default, (rows(4, 3),), {})
    (node,) = graph_module.graph.find_nodes(op="call_function", target=aten.exp.default)
    divided = divide(node, {next(iter(inputs)): BATCH}, 4)
    wrong = type(divided)({}, divided.batch)
    with pytest.raises(RuntimeError, match=r"exp_default .* is wrong"):
        Division(graph_module, {node: wrong}, HALVES, []).divide(node)
