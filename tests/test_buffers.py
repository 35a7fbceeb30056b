"""Which memory a node touches, and where it runs."""

import pytest
import torch
from torch.fx import Graph as FxGraph
from torch.fx import Node

from coxcompile.passes.partition import partition
from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import (
    accesses,
    buffer_of,
    bytes_of,
    mutated_inputs,
    named_memory,
    stream_of,
)
from tests.graph_cases import Graph
from tests.pass_cases import call, calls, hand_made, partitions, placeholder, planned

aten = torch.ops.aten


@pytest.fixture(name="graph", scope="module")
def graph_fixture() -> Graph:
    return planned("schedule", resident_share=0.5)


def test_in_place_results_are_in_the_memory_of_the_first(graph: Graph) -> None:
    outputs = set(calls(graph, instructions.new_expert_output))
    for target in (instructions.run_experts, instructions.add_rows):
        for node in calls(graph, target):
            assert buffer_of(node) in outputs
            found = accesses(graph.graph_module, node)
            assert buffer_of(node) in found.writes & found.reads
            assert node not in found.writes


def test_results_of_a_partition_are_memory_of_their_own_and_parts_of_a_tuple_are_not(
    graph: Graph,
) -> None:
    for node in partitions(graph):
        assert all(buffer_of(result) is result for result in node.users)
        assert set(node.users) <= accesses(graph.graph_module, node).writes
    for fetch in calls(graph, instructions.fetch_weights):
        assert all(buffer_of(part) is fetch for part in fetch.users)


def test_memory_with_a_name(graph: Graph) -> None:
    for target, name, place in (
        (instructions.stage_expert, "pinned", 0),
        (instructions.stage_weights, "pinned", 0),
        (instructions.fetch_expert, "slot", 1),
        (instructions.fetch_weights, "weights", 1),
    ):
        assert calls(graph, target)
        for node in calls(graph, target):
            expected = f"{name} {node.args[place]}"
            assert named_memory(node) == expected
            assert accesses(graph.graph_module, node).writes == {node, expected}
    for fetch in calls(graph, instructions.fetch_expert):
        (staged,) = fetch.all_input_nodes
        assert accesses(graph.graph_module, fetch).reads == {staged, named_memory(staged)}
    for run in calls(graph, instructions.run_experts):
        fetched: list[Node] = run.args[6]  # type: ignore[assignment]
        slots = {named_memory(fetch) for fetch in fetched}
        assert slots <= accesses(graph.graph_module, run).reads
    assert named_memory(partitions(graph)[0]) is None


def test_where_nodes_run(graph: Graph) -> None:
    expected = {
        instructions.new_expert_output: "gpu",
        instructions.run_experts: "gpu",
        instructions.pack_rows: "gpu",
        instructions.run_cpu_experts: "host",
        instructions.stage_expert: "staging",
        instructions.fetch_expert: "weights",
        instructions.device_weight: None,
        aten.slice.Tensor: None,
    }
    for target, stream in expected.items():
        assert calls(graph, target)
        assert {stream_of(node) for node in calls(graph, target)} == {stream}
    for start in calls(graph, instructions.transfer_start):
        way = "host_to_device" if start.args[1] == "gpu" else "device_to_host"
        assert stream_of(start) == way
    for node in partitions(graph):
        assert stream_of(node) == ("gpu" if node.meta["device"] == "gpu" else "host")


def test_what_orders_accesses_nothing(graph: Graph) -> None:
    for target in (instructions.record_event, instructions.wait_event, instructions.free):
        for node in calls(graph, target):
            found = accesses(graph.graph_module, node)
            assert not found.reads | found.writes


def test_a_partition_writes_to_the_caches_that_it_updates() -> None:
    graph = FxGraph()
    cache, other = placeholder(graph, "cache", 8, 4), placeholder(graph, "other", 4, 4)
    part = call(graph, aten.slice.Tensor, cache, 0, 0, 4, device="cpu")
    total = call(graph, aten.add.Tensor, part, other, device="cpu")
    call(graph, aten.copy_.default, part, total, device="cpu", val=part.meta["val"])
    graph.output((total,))
    case = hand_made(graph)
    partition(case.graph_module, case.context)
    (node,) = partitions(case)
    (written,) = mutated_inputs(case.graph_module, node)
    assert written.target is aten.slice.Tensor
    found = accesses(case.graph_module, node)
    assert {str(buffer) for buffer in found.reads} == {"cache", "other"}
    results = {str(result) for result in node.users}
    assert {str(buffer) for buffer in found.writes} == {"cache"} | results


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.empty(3, 4), 48),
        (torch.empty(3, 4, dtype=torch.bfloat16), 24),
        (torch.empty(3, 0), 0),
        (torch.empty(()), 4),
        (torch.empty(1, 4).expand(8, 4), 16),
        (torch.empty(4, 8)[:, :2], (3 * 8 + 2) * 4),
        (torch.empty(4, 8).t(), 128),
        ((torch.empty(2), [torch.empty(3), None]), 20),
        (None, 0),
        (7, 0),
    ],
)
def test_bytes(value: object, expected: int) -> None:
    assert bytes_of(value) == expected
