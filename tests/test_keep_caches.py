"""Caches that the accelerator updates: both sides updated alike, and only new elements move."""

import pytest
import torch
from torch.fx import Graph as FxGraph

from coxcompile.passes.devices import device_of, is_host_view
from coxcompile.passes.keep_caches import LONGEST_UPDATE, keep_caches
from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import bytes_of
from tests.graph_cases import BATCH, CACHE, Graph
from tests.pass_cases import added, call, calls, hand_made, placeholder, planned
from tests.reference_run import assert_same_results, results

aten = torch.ops.aten
COPY, INDEX_COPY = aten.copy_.default, aten.index_copy.default


def moved(graph: Graph) -> list[int]:
    """Bytes of each value that crosses down, other than the logits."""
    starts = calls(graph, instructions.transfer_start)
    return [
        bytes_of(start.meta["val"])
        for start in starts
        if start.args[1] == "cpu" and start.meta.get("operation") != "head"
    ]


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v2"])
def test_only_new_elements_cross(family: str) -> None:
    plan = {"devices": "gpu/gpu/gpu", "experts": (4, 0)}
    before = planned("split_experts", family, **plan)  # type: ignore[arg-type]
    after = planned("keep_caches", family, **plan)  # type: ignore[arg-type]
    crossing = moved(planned("insert_transfers", family, **plan))  # type: ignore[arg-type]
    caches = [
        node
        for write in calls(after, COPY)
        if is_host_view(node := write.all_input_nodes[0])
        or (node.op == "placeholder" and node.meta["val"].dim() == 4)
    ]
    assert caches
    assert max(crossing) < min(bytes_of(cache.meta["val"]) for cache in caches)
    for write in calls(after, COPY):
        assert {device_of(source) for source in write.all_input_nodes} == {"cpu"}
    assert_same_results(after, before)


def test_the_update_is_written_once_more_for_each_slice_of_a_cache() -> None:
    plan = {"devices": "gpu/gpu/gpu", "experts": (16, 0)}
    before = planned("split_experts", **plan)  # type: ignore[arg-type]
    after = planned("keep_caches", **plan)  # type: ignore[arg-type]
    slices = 2 * 2 * 2  # layers, keys and values, micro-batches
    assert added(before, after) == {INDEX_COPY: slices}
    sides = [device_of(node) for node in calls(after, INDEX_COPY)]
    assert sides.count("cpu") == sides.count("gpu") == slices


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_of_the_sequences_in_vram(share: float) -> None:
    plan = {"devices": "gpu/gpu/gpu", "experts": (16, 0), "micro_batch": 1}
    before = planned("split_experts", **plan)  # type: ignore[arg-type]
    after = planned("keep_caches", kv_gpu_share=share, **plan)  # type: ignore[arg-type]
    kept = calls(after, instructions.device_cache)
    assert len(kept) == 2 * 2 * round(share * BATCH)
    for cache in kept:
        (source,) = cache.all_input_nodes
        assert is_host_view(source)
        assert source.args[3] <= round(share * BATCH)  # type: ignore[operator]
        # Nothing on the accelerator reads the host's, and the copy is written last.
        assert all(user is cache or device_of(user) == "cpu" for user in source.users)
        *_, write = cache.users
        assert write.target is COPY
        assert device_of(write) == "gpu"
    assert_same_results(after, before)


def test_all_of_a_cache_in_vram_without_micro_batches() -> None:
    plan = {"devices": "gpu/gpu/gpu", "experts": (16, 0), "micro_batch": BATCH}
    kept = calls(planned("keep_caches", kv_gpu_share=1.0, **plan), instructions.device_cache)  # type: ignore[arg-type]
    assert [cache.all_input_nodes[0].op for cache in kept] == ["placeholder"] * 4
    assert {tuple(cache.meta["val"].shape) for cache in kept} == {(BATCH, 2, CACHE, 16)}
    plan["kv_gpu_share"] = 0.5
    assert not calls(planned("keep_caches", **plan), instructions.device_cache)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("devices", "call_"),
    [("gpu/cpu/gpu", "decode"), ("cpu/cpu/cpu", "prefill"), ("gpu/gpu/gpu", "forward")],
)
def test_attention_on_the_cpu_and_graphs_without_a_cache_are_left_alone(
    devices: str, call_: str
) -> None:
    before = planned("split_experts", call=call_, devices=devices)
    after = planned("keep_caches", call=call_, devices=devices)
    assert after.graph_module.code == before.graph_module.code


def update(length: int, before: int = 0) -> Graph:
    """A cache that grows by a hidden state in ``length`` operators; it comes ``before`` others."""
    graph = FxGraph()
    cache, state = placeholder(graph, "cache", 4, 8), placeholder(graph, "state", 4, 8)
    for _ in range(before):
        state = call(graph, aten.neg.default, state, device="gpu")
    updated = call(graph, aten.add.Tensor, cache, state, device="gpu")
    for _ in range(length - 1):
        updated = call(graph, aten.neg.default, updated, device="gpu")
    call(graph, COPY, cache, updated, device="cpu", val=cache.meta["val"])
    graph.output((updated,))
    return hand_made(graph)


@pytest.mark.parametrize("length", [1, 3, LONGEST_UPDATE])
def test_an_update_of_few_operators_is_made_twice(length: int) -> None:
    before, after = update(length), update(length)
    keep_caches(after.graph_module, after.context)
    after.graph_module.graph.lint()
    assert len(after.nodes) == len(before.nodes) + length
    assert [device_of(node) for node in after.nodes].count("cpu") == length + 1
    inputs = [torch.randn(4, 8), torch.randn(4, 8)]
    for graph in (before, after):
        graph.graph_module.recompile()
        graph.context.example_inputs = [value.clone() for value in inputs]
    for one, other in zip(results(after), results(before), strict=True):
        assert torch.equal(one, other)


def test_an_update_of_more_operators_crosses_whole() -> None:
    before, after = update(LONGEST_UPDATE + 1), update(LONGEST_UPDATE + 1)
    keep_caches(after.graph_module, after.context)
    assert str(after.graph_module.graph) == str(before.graph_module.graph)


def test_a_cache_far_down_a_deep_model() -> None:
    graph = update(2, before=3000)
    nodes = len(graph.nodes)
    keep_caches(graph.graph_module, graph.context)
    assert len(graph.nodes) == nodes + 2


def test_a_counter_that_the_cpu_updates_is_left_alone() -> None:
    graph = FxGraph()
    counter = placeholder(graph, "counter")
    updated = call(graph, aten.add.Tensor, counter, 1, device="cpu")
    call(graph, COPY, counter, updated, device="cpu", val=counter.meta["val"])
    graph.output((updated,))
    case = hand_made(graph, kv_gpu_share=1.0)
    before = str(graph)
    keep_caches(case.graph_module, case.context)
    assert str(case.graph_module.graph) == before
