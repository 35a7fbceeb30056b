"""Values that change sides: one transfer a value and side, and none within a side."""

from collections import Counter

import pytest
import torch
from torch.fx import Graph as FxGraph

from coxcompile.passes.context import parameters_of
from coxcompile.passes.devices import device_of, is_host_view
from coxcompile.passes.insert_transfers import insert_transfers
from coxcompile.runtime import instructions
from tests.graph_cases import Graph
from tests.pass_cases import added, call, calls, hand_made, placeholder, planned
from tests.reference_run import assert_same_results, results

aten = torch.ops.aten
STARTS = (instructions.transfer_start, instructions.transfer_rows_start)
READ_ON_THE_HOST = (
    *(instructions.device_cache, instructions.fetch_expert, instructions.fetch_weights),
    *(*STARTS, instructions.device_weight),
)
PLANS = [
    {"devices": "gpu/cpu/gpu"},
    {"devices": "gpu/gpu/gpu", "kv_gpu_share": 0.5, "resident_share": 0.3},
    {"devices": "gpu/cpu/gpu", "coalesced": False, "staging_experts": 4, "micro_batch": 1},
    {"devices": "cpu/gpu/cpu", "cpu_layers": (1,)},
    {"devices": "gpu/cpu/cpu", "micro_batch": 1, "block": 2},
]


def assert_sides_are_kept_apart(graph: Graph) -> None:
    for node in graph.nodes:
        if node.target in READ_ON_THE_HOST or is_host_view(node):
            continue
        for source in node.all_input_nodes:
            assert device_of(source) == device_of(node), (source, node)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_each_value_moves_once_to_a_side(plan: dict[str, object]) -> None:
    before = planned("fetch_weights", **plan)  # type: ignore[arg-type]
    after = planned("insert_transfers", **plan)  # type: ignore[arg-type]
    starts = [node for target in STARTS for node in calls(after, target)]
    moved = Counter((start.args[0], start.args[1]) for start in starts)
    assert set(moved.values()) == {1}
    for start in starts:
        source = start.args[0]
        assert isinstance(source, torch.fx.Node)
        assert device_of(source) != start.args[1] == device_of(start)
        (wait,) = start.users
        assert wait.target is instructions.transfer_wait
        assert wait.users
        assert device_of(wait) == device_of(start)
    assert len(calls(after, instructions.transfer_wait)) == len(starts)
    assert_sides_are_kept_apart(after)
    inserted = (*STARTS, instructions.transfer_wait, instructions.device_weight)
    assert set(added(before, after)) <= set(inserted)
    assert_same_results(after, before)


def test_weights_of_the_accelerator_are_copied_once_and_others_not_at_all() -> None:
    after = planned("insert_transfers")
    weights = [node.args[0] for node in calls(after, instructions.device_weight)]
    assert len(set(weights)) == len(weights) > 0
    experts = {name for layer in after.context.expert_layers for name in layer.inputs}
    for parameter in parameters_of(after.graph_module, after.context):
        readers = {device_of(user) for user in parameter.users}
        assert (parameter in weights) == ("gpu" in readers)
        assert not (parameter.name in experts and parameter in weights)
        assert not any(user.target in STARTS for user in parameter.users)


def test_only_the_rows_of_the_cpus_experts_move() -> None:
    after = planned("insert_transfers")
    rows = calls(after, instructions.transfer_rows_start)
    down, up = instructions.pack_rows, instructions.run_cpu_experts
    sources = [(n.args[0].target, n.args[1]) for n in rows]  # type: ignore[union-attr]
    assert Counter(sources) == {(down, "cpu"): 2, (up, "gpu"): 2}
    for experts in calls(after, instructions.run_cpu_experts):
        (wait, *_) = experts.all_input_nodes
        assert wait.target is instructions.transfer_wait
        assert isinstance(wait.meta["val"], tuple)
    for added_rows in calls(after, instructions.add_rows):
        _, packed, arrived = added_rows.args
        assert packed.target is instructions.pack_rows  # type: ignore[union-attr]
        assert arrived.target is instructions.transfer_wait  # type: ignore[union-attr]


def both_sides() -> FxGraph:
    """x on the CPU is read three times on the accelerator, whose sum is read twice on the CPU."""
    graph = FxGraph()
    x = placeholder(graph, "x", 4, 8)
    squared = call(graph, aten.mul.Tensor, x, x, device="cpu")
    parts = [
        call(graph, op, squared, device="gpu")
        for op in (aten.exp.default, aten.neg.default, aten.sin.default)
    ]
    first = call(graph, aten.add.Tensor, parts[0], parts[1], device="gpu")
    total = call(graph, aten.add.Tensor, first, parts[2], device="gpu")
    ends = [call(graph, op, total, device="cpu") for op in (aten.cos.default, aten.tanh.default)]
    graph.output(tuple(ends))
    return graph


def test_one_transfer_serves_all_readers_of_a_side() -> None:
    before, after = hand_made(both_sides()), hand_made(both_sides())
    insert_transfers(after.graph_module, after.context)
    after.graph_module.graph.lint()
    assert added(before, after) == {
        instructions.transfer_start: 2,
        instructions.transfer_wait: 2,
    }
    assert_sides_are_kept_apart(after)
    assert [node.args[1] for node in calls(after, instructions.transfer_start)] == ["gpu", "cpu"]
    for graph in (before, after):
        graph.graph_module.recompile()
    for one, other in zip(results(after), results(before), strict=True):
        assert torch.equal(one, other)


def test_what_the_user_gets_is_on_the_host() -> None:
    graph = FxGraph()
    doubled = call(graph, aten.neg.default, placeholder(graph, "x", 4), device="gpu")
    graph.output((doubled,))
    case = hand_made(graph)
    insert_transfers(case.graph_module, case.context)
    (result,) = graph.output_node().all_input_nodes
    assert case.graph_module.graph.output_node().all_input_nodes[0].meta["device"] == "cpu"
    assert result.target is aten.neg.default or result.target is instructions.transfer_wait


def test_nothing_moves_within_a_side() -> None:
    before = planned("fetch_weights", devices="cpu/cpu/cpu", experts=(0, 0))
    after = planned("insert_transfers", devices="cpu/cpu/cpu", experts=(0, 0))
    assert after.graph_module.code == before.graph_module.code


def test_weights_that_an_instruction_reads_on_the_host_stay() -> None:
    after = planned("insert_transfers", resident_share=0.0)
    staged = (instructions.stage_expert, instructions.stage_weights)
    for node in (node for target in staged for node in calls(after, target)):
        assert {source.op for source in node.all_input_nodes} == {"placeholder"}
