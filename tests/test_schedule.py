"""The order of a schedule: transfers early, waits late, micro-batches in a pipeline, frees."""

import operator
from collections import Counter
from typing import Any

import pytest
from torch.fx import Node

from coxcompile.passes.verify import ScheduleError, verify
from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import stream_of
from tests.graph_cases import Graph
from tests.pass_cases import calls, count, partitions, planned, position
from tests.reference_run import assert_same_results

NEW = (instructions.record_event, instructions.wait_event, instructions.free)
PLANS: list[dict[str, Any]] = [
    {"devices": "gpu/cpu/gpu", "micro_batch": 1, "experts": (2, 5)},
    {"devices": "gpu/gpu/gpu", "kv_gpu_share": 0.5, "resident_share": 0.3},
    {
        "devices": "gpu/cpu/gpu",
        "coalesced": False,
        "staging_experts": 2,
        "fetches_overlap": False,
        "resident_share": 0.0,
    },
    {"devices": "gpu/cpu/cpu", "micro_batch": 1, "block": 2},
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_only_order_events_and_frees_are_new(plan: dict[str, Any]) -> None:
    before, after = planned("partition", **plan), planned("schedule", **plan)
    old = count(before)
    old.pop(instructions.transfer_wait)
    new = count(after)
    for target in NEW:
        assert new.pop(target) > 0
    # Results that nothing reads are left away.
    assert new.pop(operator.getitem) <= old.pop(operator.getitem)
    assert new == old
    assert_same_results(after, before)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_buffer_is_freed_once_after_its_last_reader(plan: dict[str, Any]) -> None:
    graph = planned("schedule", **plan)
    places = position(graph)
    freed = Counter(free.args[0] for free in calls(graph, instructions.free))
    assert set(freed.values()) == {1}
    outputs = [result for node in partitions(graph, "gpu") for result in node.users]
    outputs += [n for n in calls(graph, instructions.transfer_start) if n.args[1] == "gpu"]
    outputs += calls(graph, instructions.new_expert_output)
    assert set(outputs) <= set(freed)
    for free in calls(graph, instructions.free):
        value: Node = free.args[0]  # type: ignore[assignment]
        assert all(places[user] < places[free] for user in value.users if user is not free)
        assert value.target not in (instructions.device_weight, instructions.device_cache)


def of(graph: Graph, operation: str, device: str, layer: int) -> list[int]:
    """Where the partitions of one operation and layer stand, by micro-batch."""
    places = position(graph)
    found = {
        node.meta["micro_batch"]: places[node]
        for node in partitions(graph, device)
        if node.meta.get("operation") == operation
        and node.meta.get("layer") == layer
        and "micro_batch" in node.meta
    }
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_on_the_cpu_runs_between_the_accelerators_projections(layer: int) -> None:
    """While the CPU has micro-batch k, the accelerator has k + 1; then it gets the output of k."""
    graph = planned("schedule", micro_batch=1)
    projections, attention = of(graph, "qkv", "gpu", layer), of(graph, "attention", "cpu", layer)
    outputs = of(graph, "output", "gpu", layer)
    assert len(projections) == len(attention) == len(outputs) == 4
    for number in range(4):
        assert projections[number] < attention[number] < outputs[number]
        if number < 3:
            assert projections[number + 1] < attention[number]
            assert outputs[number] < attention[number + 1]


def test_experts_of_the_next_layer_are_fetched_ahead() -> None:
    graph = planned("schedule", experts=(2, 2), staging_experts=4)
    places = position(graph)
    ahead = [n for n in calls(graph, instructions.fetch_expert) if n.args[2] == 1]
    used = [n for n in calls(graph, instructions.run_experts) if n.args[4] == 0]
    assert max(places[node] for node in ahead) < min(places[node] for node in used)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_starts_come_before_waits_and_no_wait_is_twice_on_a_stream(plan: dict[str, Any]) -> None:
    graph = planned("schedule", **plan)
    places = position(graph)
    recorded = {node.args[0]: node for node in calls(graph, instructions.record_event)}
    assert len(recorded) == len(calls(graph, instructions.record_event))
    waits = calls(graph, instructions.wait_event)
    assert {wait.args[0] for wait in waits} == set(recorded)
    assert all(places[recorded[wait.args[0]]] < places[wait] for wait in waits)
    assert all(stream_of(wait) != stream_of(recorded[wait.args[0]]) for wait in waits)
    assert len({(wait.args[0], stream_of(wait)) for wait in waits}) == len(waits)


def test_every_wait_is_needed() -> None:
    graph = planned("verify")
    nodes = graph.graph_module.graph
    verify(graph.graph_module, graph.context)
    for wait in calls(graph, instructions.wait_event):
        following, arguments, meta = wait.next, wait.args, wait.meta
        nodes.erase_node(wait)
        with pytest.raises(ScheduleError):
            verify(graph.graph_module, graph.context)
        with nodes.inserting_before(following):
            again = nodes.call_function(instructions.wait_event, arguments)
        again.meta = meta
    verify(graph.graph_module, graph.context)
