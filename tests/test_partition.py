"""Partitions: of one side and micro-batch each, convex, few, and compiled once where equal."""

import operator
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule

from coxcompile.passes import lower_coexecution
from coxcompile.passes.devices import is_view
from coxcompile.passes.partition import partition
from coxcompile.runtime.accelerator import CudaAccelerator
from coxcompile.runtime.buffers import bytes_of
from coxcompile.runtime.instructions import INSTRUCTIONS
from tests.graph_cases import Graph
from tests.pass_cases import call, count, hand_made, inside, partitions, placeholder, planned
from tests.reference_run import assert_same_results

aten = torch.ops.aten
neg, exp, sin, add = (aten.neg.default, aten.exp.default, aten.sin.default, aten.add.Tensor)
PLANS = [
    {"devices": "gpu/cpu/gpu"},
    {"devices": "gpu/gpu/gpu", "kv_gpu_share": 0.5, "resident_share": 0.3, "micro_batch": 1},
    {"devices": "gpu/cpu/gpu", "coalesced": False, "staging_experts": 4},
    {"devices": "cpu/gpu/cpu", "cpu_layers": (1,)},
    {"devices": "gpu/cpu/cpu", "micro_batch": 1, "block": 2},
    {"devices": "cpu/cpu/cpu", "experts": (0, 0)},
]


def assert_partitioned(before: Graph, after: Graph) -> None:
    """Every operator is in one partition, whose nodes belong together; nothing else is."""
    fused: Counter[Any] = Counter()
    for node in partitions(after):
        operators = [n for n in inside(after, node) if n.target is not operator.getitem]
        fused.update(n.target for n in operators)
        assert {n.meta.get("device", "cpu") for n in operators} == {node.meta["device"]}
        assert len({n.meta.get("micro_batch") for n in operators}) == 1
        assert len({n.meta.get("block") for n in operators}) == 1
        assert not any(n.target in INSTRUCTIONS for n in operators)
    outside = [node for node in after.nodes if node.target is not operator.getitem]
    assert all(node.target in INSTRUCTIONS or is_view(node) for node in outside)
    operators_before = [
        node.target
        for node in before.nodes
        if node.target not in INSTRUCTIONS
        and node.target is not operator.getitem
        and not is_view(node)
    ]
    assert fused == Counter(operators_before)


def test_what_a_partition_says_of_itself() -> None:
    """Its side is that of its nodes; the head is no layer's."""
    graph = planned("partition")
    found = [node for node in partitions(graph) if node.meta.get("operation") == "head"]
    assert {node.meta["device"] for node in found} == {"gpu"}
    assert not any("layer" in node.meta for node in found)
    for node in partitions(graph):
        assert [bytes_of(user.meta["val"]) for user in node.users] == [
            bytes_of(node.meta["val"][user.args[1]])  # type: ignore[index]
            for user in node.users
        ]


def assert_no_way_out_and_back(before: Graph, after: Graph) -> None:
    """Convex: what a partition's node depends on outside of it depends on none of its nodes."""
    home = {n.name: p.name for p in partitions(after) for n in inside(after, p)}
    depends: dict[str, set[str]] = {}
    for node in before.graph_module.graph.nodes:
        own = home.get(node.name)
        found = set().union(*(depends[source.name] for source in node.all_input_nodes))
        outside = {s.name for s in node.all_input_nodes if home.get(s.name) != own}
        for source in outside:
            assert own is None or own not in depends[source], (source, node)
        depends[node.name] = found | ({own} if own else set())


@pytest.mark.parametrize("call_", ["prefill", "decode"])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_operator_is_in_one_convex_partition(plan: dict[str, object], call_: str) -> None:
    before = planned("insert_transfers", call=call_, **plan)  # type: ignore[arg-type]
    after = planned("partition", call=call_, **plan)  # type: ignore[arg-type]
    assert_partitioned(before, after)
    assert_no_way_out_and_back(before, after)
    if call_ == "decode":
        assert_same_results(after, before)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v2", "glm4_moe"])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_few_partitions_with_attention_on_the_cpu(family: str, micro_batch: int) -> None:
    """Two a layer and micro-batch on the accelerator: into attention, and out of it."""
    graph = planned("partition", family, micro_batch=micro_batch)
    moe_layers = len(graph.context.expert_layers)
    own = Counter(
        (node.meta["layer"], node.meta["micro_batch"])
        for node in partitions(graph, "gpu")
        if {"layer", "micro_batch"} <= {*node.meta}
    )
    assert max(own.values()) <= 2
    shared = [node for node in partitions(graph, "gpu") if "micro_batch" not in node.meta]
    # Around each layer's experts, and the head.
    assert len(shared) <= 2 * moe_layers + 1
    head = [node for node in partitions(graph, "gpu") if node.meta["operation"] == "head"]
    assert len(head) <= 4 // micro_batch + 1
    attention = [n for n in partitions(graph, "cpu") if "micro_batch" in n.meta]
    # And what embeds a micro-batch, or casts an input for it.
    assert len(attention) <= (2 + 2) * (4 // micro_batch)


def test_all_of_a_layer_on_the_accelerator_is_one_partition_a_micro_batch() -> None:
    graph = planned("partition", devices="gpu/gpu/gpu", experts=(16, 0))
    own = Counter(
        (node.meta["layer"], node.meta["micro_batch"])
        for node in partitions(graph, "gpu")
        if {"layer", "micro_batch"} <= {*node.meta}
    )
    # In the first layer the rotary tables are there a level later than the embeddings.
    assert own == {(layer, part): 2 - layer for layer in (0, 1) for part in (0, 1)}


def test_no_partition_spans_layers_that_wait_for_their_weights() -> None:
    plan = {"coalesced": False, "experts": (0, 0), "devices": "gpu/gpu/gpu", "resident_share": 0.0}

    def layers(**more: bool) -> set[int]:
        graph = planned("partition", **plan, **more)  # type: ignore[arg-type]
        found = [{n.meta.get("layer", -1) for n in inside(graph, p)} for p in partitions(graph)]
        return {len(numbers) for numbers in found}

    assert layers(fetches_overlap=False) == {1}


class Stub(CudaAccelerator):
    """As far as compiling needs one: nothing is run."""

    def __init__(self) -> None:
        self.device = self.kernel_device = torch.device("cpu")


@pytest.fixture(name="compiled")
def compiled_fixture(monkeypatch: pytest.MonkeyPatch) -> list[GraphModule]:
    """What would be compiled from now on."""
    modules: list[GraphModule] = []

    def keep(inner: GraphModule) -> Any:
        modules.append(inner)
        return inner.forward

    # By this name as an attribute, the package has the pass, not its module.
    monkeypatch.setattr(
        sys.modules["coxcompile.passes.lower_coexecution"], "compile_partition", keep
    )
    return modules


def test_equal_partitions_are_compiled_once(compiled: list[GraphModule]) -> None:
    for micro_batch in (2, 1):
        compiled.clear()
        graph = planned("schedule", micro_batch=micro_batch)
        lower_coexecution(graph.graph_module, graph.context, Stub())
        modules = {getattr(graph.graph_module, str(n.target)): n for n in partitions(graph)}
        assert len(modules) == len(partitions(graph))
        kernels = Counter(
            (modules[inner].meta.get("operation"), "micro_batch" in modules[inner].meta)
            for inner in compiled
        )
        # Of both layers and all micro-batches; attention differs in what it slices and casts.
        assert kernels["output", True] == kernels["output", False] == 1
        assert kernels["experts", False] == 1
        assert kernels["attention", True] < 2 * (4 // micro_batch)
        assert len(compiled) < len(modules)


def alternating(sides: str) -> Graph:
    """A chain of one operator a letter: g on the accelerator, c on the CPU."""
    graph = FxGraph()
    value = placeholder(graph, "x", 4)
    for side in sides:
        device = {"g": "gpu", "c": "cpu"}[side]
        value = call(graph, aten.neg.default, value, device=device)
    graph.output((value,))
    return hand_made(graph)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [("ggg", [3]), ("ggcgg", [2, 1, 2]), ("cgc", [1, 1, 1]), ("ccgg", [2, 2])],
)
def test_a_partition_ends_where_the_side_changes(sides: str, expected: list[int]) -> None:
    graph = alternating(sides)
    partition(graph.graph_module, graph.context)
    assert [len(inside(graph, node)) for node in partitions(graph)] == expected


def test_ways_out_and_back_divide() -> None:
    """gpu → cpu → gpu beside gpu → gpu: the last may not be in one partition with the first."""
    graph = FxGraph()
    first = call(graph, aten.neg.default, placeholder(graph, "x", 4), device="gpu")
    there = call(graph, aten.exp.default, first, device="cpu")
    beside = call(graph, aten.sin.default, first, device="gpu")
    last = call(graph, aten.add.Tensor, there, beside, device="gpu")
    graph.output((last,))
    case = hand_made(graph)
    partition(case.graph_module, case.context)
    case.graph_module.graph.lint()
    found = {tuple(n.target for n in inside(case, node)) for node in partitions(case)}
    assert found == {(neg,), (exp,), (sin, add)}


def test_a_write_to_an_input_comes_after_what_reads_it() -> None:
    graph = FxGraph()
    cache = placeholder(graph, "cache", 4)
    read = call(graph, aten.neg.default, cache, device="cpu")
    there = call(graph, aten.exp.default, read, device="gpu")
    back = call(graph, aten.sin.default, there, device="cpu")
    call(graph, aten.copy_.default, cache, back, device="cpu", val=cache.meta["val"])
    graph.output((back,))
    case = hand_made(graph)
    partition(case.graph_module, case.context)
    order = [[n.target for n in inside(case, node)] for node in partitions(case)]
    assert order == [[neg], [exp], [sin, aten.copy_.default]]


def test_nothing_to_fuse() -> None:
    graph = FxGraph()
    x = placeholder(graph, "x", 4, 8)
    part = call(graph, aten.slice.Tensor, x, 0, 0, 2, device="cpu")
    graph.output((part,))
    case = hand_made(graph)
    before = count(case)
    partition(case.graph_module, case.context)
    assert count(case) == before
