"""The experts of a layer divided: tables, slots, order, and the sum of the shares."""

from dataclasses import replace

import pytest
import torch
from torch.fx import Node

from coxcompile.options import Options
from coxcompile.passes.plan import PlanError, plan
from coxcompile.planner.plan import ExpertSplit, Plan
from coxcompile.runtime import instructions
from coxcompile.runtime.expert_layer import ExpertLayer
from tests.graph_cases import Graph, family_graph
from tests.pass_cases import EXPERTS, added, calls, plan_of, planned, position
from tests.reference_run import assert_same_results

SPLITS = [(2, 2, 2), (0, 4, 2), (6, 5, 2), (3, 8, 1), (4, 0, 0), (1, 15, 3), (16, 0, 0)]
"""Resident and migrating experts of 16, and slots for the migrating ones."""


def tables(layer: ExpertLayer) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Those of resident experts, and those of migrating ones."""
    resident = [t for t in layer.tables if t and t[0] < layer.split.resident]
    return resident, [t for t in layer.tables if t and t[0] >= layer.split.resident]


@pytest.mark.parametrize(("resident", "migrating", "staging"), SPLITS)
def test_every_expert_of_the_accelerator_is_in_one_table(
    resident: int, migrating: int, staging: int
) -> None:
    graph = planned("split_experts", experts=(resident, migrating), staging_experts=staging)
    for number, layer in enumerate(graph.context.expert_layers):
        chunks, others = tables(layer)
        assert sorted(rank for table in layer.tables for rank in table) == list(
            range(resident + migrating)
        )
        assert others == [(rank,) for rank in range(resident, resident + migrating)]
        # A chunk of resident experts fills the time of each fetch that has to wait for a slot.
        assert len(chunks) == min(resident, 1 + max(migrating - staging, 0))
        sizes = [len(chunk) for chunk in chunks]
        assert not sizes or max(sizes) - min(sizes) <= 1
        assert layer.first_slot == number * resident
        assert layer.number == number
        assert layer.cpu_ranks == range(resident + migrating, 16)


@pytest.mark.parametrize(("resident", "migrating", "staging"), SPLITS)
def test_slots_are_a_ring_in_the_order_of_the_fetches(
    resident: int, migrating: int, staging: int
) -> None:
    graph = planned("split_experts", experts=(resident, migrating), staging_experts=staging)
    fetches = calls(graph, instructions.fetch_expert)
    assert [fetch.args[2:] for fetch in fetches] == [
        (layer, rank) for layer in (0, 1) for rank in range(resident, resident + migrating)
    ]
    assert [fetch.args[1] for fetch in fetches] == [
        2 * resident + number % staging for number in range(len(fetches))
    ]
    for fetch in fetches:
        layer = graph.context.expert_layers[fetch.args[2]]  # type: ignore[index]
        assert layer.slot_of(fetch.args[3]) == fetch.args[1]  # type: ignore[arg-type]
        staged = fetch.args[0]
        assert isinstance(staged, Node)
        assert staged.target is instructions.stage_expert
        assert staged.args[:3] == (None, *fetch.args[2:])
        assert "micro_batch" not in fetch.meta


def runs(graph: Graph, layer: int) -> list[tuple[int, ...]]:
    """The ranks of each ``run_experts`` of a layer, in order."""
    nodes = [n for n in calls(graph, instructions.run_experts) if n.args[4] == layer]
    return [graph.context.expert_layers[layer].tables[n.args[5]] for n in nodes]  # type: ignore[index]


def test_experts_fetched_ahead_come_first_and_resident_ones_fill_the_time() -> None:
    graph = planned("split_experts", experts=(6, 5), staging_experts=2)
    ahead, rest = [(6,), (7,)], [(0,), (8,), (1, 2), (9,), (3,), (10,), (4, 5)]
    assert runs(graph, 0) == runs(graph, 1) == ahead + rest
    places = position(graph)
    for run in calls(graph, instructions.run_experts):
        ranks = graph.context.expert_layers[run.args[4]].tables[run.args[5]]  # type: ignore[index]
        fetched: list[Node] = run.args[6]  # type: ignore[assignment]
        assert [fetch.args[3] for fetch in fetched] == [rank for rank in ranks if rank >= 6]
        assert all(places[fetch] < places[run] for fetch in fetched)


@pytest.mark.parametrize("cpu", [0, 1])
def test_operators_before_and_after(cpu: int) -> None:
    before = planned("micro_batch")
    after = planned("split_experts", experts=(12 - cpu, 4), staging_experts=2)
    change = added(before, after)
    assert change.pop(EXPERTS) == -2
    expected = {
        instructions.new_expert_output: 2,
        instructions.stage_expert: 8,
        instructions.fetch_expert: 8,
        # Four migrating ones, and three chunks of resident ones.
        instructions.run_experts: 14,
    }
    if cpu:
        expected |= dict.fromkeys(
            (instructions.pack_rows, instructions.run_cpu_experts, instructions.add_rows), 2
        )
    casts = [t for t in change if "_to_copy" in str(t)]
    assert [change.pop(cast) for cast in casts] == [2]
    assert change == expected


PLANS = [
    {"experts": (2, 2)},
    {"experts": (0, 5), "staging_experts": 1},
    {"experts": (16, 0)},
    {"experts": (3, 13), "staging_experts": 4, "micro_batch": 1, "block": 2},
    {"experts": (2, 14), "staging_experts": 28, "coalesced": False},
    {"experts": (1, 3), "staging_experts": 3, "coalesced": False, "fetches_overlap": False},
    {"experts": (2, 2), "cpu_layers": (0,)},
]


@pytest.mark.parametrize("fields", PLANS, ids=str)
def test_the_shares_add_up_to_the_whole(fields: dict[str, object]) -> None:
    shape = {key: fields[key] for key in ("micro_batch", "block", "coalesced") if key in fields}
    before = planned("micro_batch", **shape)  # type: ignore[arg-type]
    assert_same_results(planned("split_experts", **fields), before)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["gpt_oss", "glm4_moe"])
def test_experts_of_other_forms(family: str) -> None:
    """With biases and a clamped activation; with shared experts, after a dense layer."""
    after = planned("split_experts", family, "prefill", experts=(3, 2))
    assert_same_results(after, planned("micro_batch", family, "prefill"))
    for layer in after.context.expert_layers:
        assert (layer.weights[2] is not None) == (family == "gpt_oss")


def test_not_coalesced_each_expert_is_fetched_once_for_all_micro_batches() -> None:
    graph = planned(
        "split_experts", experts=(2, 3), coalesced=False, staging_experts=6, micro_batch=1
    )
    assert [layer.tables for layer in graph.context.expert_layers] == [(tuple(range(5)),)] * 2
    fetches = calls(graph, instructions.fetch_expert)
    assert [fetch.args[1] for fetch in fetches] == [4, 5, 6, 7, 8, 9]
    for layer in (0, 1):
        own = [fetch for fetch in fetches if fetch.args[2] == layer]
        nodes = [n for n in calls(graph, instructions.run_experts) if n.args[4] == layer]
        assert [node.meta["micro_batch"] for node in nodes] == [0, 1, 2, 3]
        assert all(node.args[6] == own for node in nodes)
        assert len(own) == 3


def test_where_layers_wait_for_their_weights_all_use_one_set_of_slots() -> None:
    graph = planned(
        "split_experts",
        experts=(1, 3),
        coalesced=False,
        staging_experts=3,
        fetches_overlap=False,
    )
    slots = [layer.migrating_slots for layer in graph.context.expert_layers]
    assert slots == [(2, 3, 4), (2, 3, 4)]


def test_later_blocks_use_the_records_of_the_first() -> None:
    graph = planned("split_experts", micro_batch=1, block=2)
    assert len(graph.context.expert_layers) == 2
    for layer in (0, 1):
        nodes = [n for n in calls(graph, instructions.fetch_expert) if n.args[2] == layer]
        assert [node.meta["block"] for node in nodes] == [0, 0, 1, 1]


@pytest.mark.parametrize("coalesced", [True, False])
def test_a_layer_that_is_all_the_cpus_is_left_alone(coalesced: bool) -> None:
    before = planned("micro_batch", experts=(0, 0), coalesced=coalesced)
    after = planned("split_experts", experts=(0, 0), coalesced=coalesced)
    assert after.graph_module.code == before.graph_module.code
    assert after.context.expert_layers == []
    mixed = planned("split_experts", cpu_layers=(0,), coalesced=coalesced)
    assert {node.meta["layer"] for node in calls(mixed, EXPERTS)} == {0}
    assert [layer.number for layer in mixed.context.expert_layers] == [1]


@pytest.mark.parametrize(("coalesced", "slots"), [(True, 0), (False, 3)])
def test_too_few_slots_are_refused(coalesced: bool, slots: int) -> None:
    graph = family_graph("qwen3_moe", "decode", torch.float32)
    splits = [ExpertSplit(resident=2, migrating=4, cpu=10)] * 2
    stage = plan_of("gpu/cpu/gpu", splits, coalesced=coalesced, staging_experts=slots)
    made = Plan(policy="mine", model="m", hardware="h", prefill=stage, decode=stage)
    context = replace(graph.context, options=Options(plan=made))
    with pytest.raises(PlanError, match=f"staging_experts in decode is {slots}, .* or more"):
        plan(graph.graph_module, context)
