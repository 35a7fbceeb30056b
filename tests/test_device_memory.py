"""Bytes on the accelerator, counted from the graph."""

import pytest
import torch
from torch.fx import Graph as FxGraph

from coxcompile.passes.device_memory import (
    allocates,
    arena_slots,
    held_throughout,
    room_for_values,
    workspace,
)
from coxcompile.passes.partition import partition
from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import bytes_of
from tests.graph_cases import BATCH, CACHE
from tests.pass_cases import VRAM, call, calls, hand_made, partitions, placeholder, planned

aten = torch.ops.aten
FLOAT = 4


def test_what_is_held_throughout() -> None:
    """A tiny Qwen3-MoE: 64 wide, 4 heads of 16, 2 of them for keys, 16 experts of 32, 128 words."""
    graph = planned(
        "insert_transfers", devices="gpu/gpu/gpu", experts=(3, 2), micro_batch=1, kv_gpu_share=0.5
    )
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 2 * 16
    layer = attention + 2 * 64 + 16 * 64
    held = held_throughout(graph.graph_module, graph.context)
    constants = held["weights"] - FLOAT * (2 * layer + 64 + 128 * 64)
    assert 0 <= constants <= 16 * FLOAT  # the rotary table
    assert held["experts"] == (2 * 3 + 2) * 3 * 64 * 32 * FLOAT
    # Two migrating experts and one chunk of resident ones, and the CPU's.
    assert held["tables of experts"] == 2 * (3 + 1) * 16 * 8
    assert held["KV cache"] == 2 * 2 * (BATCH // 2) * 2 * CACHE * 16 * FLOAT
    assert held["fetched weights"] == 0
    assert room_for_values(graph.graph_module, graph.context) == VRAM - sum(held.values())


@pytest.mark.parametrize(("overlap", "buffers"), [(True, 2), (False, 1)])
def test_buffers_for_fetched_weights(overlap: bool, buffers: int) -> None:
    plan = {"coalesced": False, "staging_experts": 4, "fetches_overlap": overlap}
    graph = planned("insert_transfers", resident_share=0.0, **plan)  # type: ignore[arg-type]
    resident = planned("insert_transfers", **plan)  # type: ignore[arg-type]
    held = held_throughout(graph.graph_module, graph.context)
    all_held = held_throughout(resident.graph_module, resident.context)
    of_a_layer = (all_held["weights"] - held["weights"]) / 2
    assert buffers * of_a_layer <= held["fetched weights"] <= buffers * (of_a_layer + 9 * 63)


@pytest.mark.parametrize(
    ("experts", "staging", "slots"),
    [((2, 3), 2, 6), ((0, 3), 1, 1), ((16, 0), 2, 32), ((0, 0), 2, 0)],
)
def test_slots_of_the_arena(experts: tuple[int, int], staging: int, slots: int) -> None:
    graph = planned("split_experts", experts=experts, staging_experts=staging)
    assert arena_slots(graph.context.expert_layers) == slots


def test_what_allocates() -> None:
    graph = planned("partition", devices="gpu/cpu/gpu", resident_share=0.5)
    none = (
        *(instructions.run_experts, instructions.add_rows, instructions.device_weight),
        *(instructions.fetch_expert, instructions.fetch_weights, instructions.run_cpu_experts),
        *(instructions.stage_expert, instructions.stage_weights),
    )
    for target in none:
        assert calls(graph, target)
        assert {allocates(graph.graph_module, node) for node in calls(graph, target)} == {0}
    for node in calls(graph, instructions.transfer_start):
        expected = bytes_of(node.meta["val"]) if node.args[1] == "gpu" else 0
        assert allocates(graph.graph_module, node) == expected
    for node in calls(graph, instructions.new_expert_output):
        assert allocates(graph.graph_module, node) == BATCH * 64 * FLOAT
    for node in partitions(graph):
        results = sum(bytes_of(value) for value in node.meta["val"])
        expected = results if node.meta["device"] == "gpu" else 0
        assert allocates(graph.graph_module, node) == expected


def intermediates(*operators: tuple[object, ...], device: str = "gpu") -> int:
    """Workspace of a partition: a chain of operators on a float32 [8, 4], 128 bytes."""
    graph = FxGraph()
    value = placeholder(graph, "x", 8, 4)
    for target, *arguments in operators:
        value = call(graph, target, value, *arguments, device=device)
    graph.output((value,))
    case = hand_made(graph)
    partition(case.graph_module, case.context)
    (node,) = partitions(case)
    return workspace(case.graph_module, node)


NEG, ADD = (aten.neg.default,), (aten.add.Tensor, 1)


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        ([NEG], 0),
        ([NEG, NEG], 128),
        # While the third is computed, the second's source is gone.
        ([NEG, NEG, NEG], 256),
        ([NEG, ADD, NEG, ADD], 256),
        # Views are no memory of their own; a reshape across strides is.
        ([NEG, (aten.transpose.int, 0, 1), NEG], 128),
        ([NEG, (aten.view.default, [32]), NEG], 128),
        ([NEG, (aten.reshape.default, [32]), NEG], 128),
        ([NEG, (aten.transpose.int, 0, 1), (aten.reshape.default, [32]), NEG], 256),
        ([(aten.expand.default, [3, 8, 4]), (aten.clone.default,), NEG], 384),
    ],
)
def test_the_workspace_of_a_partition(operators: list[tuple[object, ...]], expected: int) -> None:
    assert intermediates(*operators) == expected


def test_partitions_on_the_cpu_need_none() -> None:
    assert intermediates(NEG, NEG, device="cpu") == 0
