"""Where a plan puts each operation, and what then crosses the link."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import Node

from coxcompile.passes.context import Placement, parameters_of
from coxcompile.passes.minimum_cut import Value, bytes_moved, minimum_cut
from coxcompile.passes.place import place, unpacked, values_to_move
from coxcompile.passes.products import weight_of
from coxcompile.planner.model_from_graph import model_from_graph, workload_from_graph
from coxcompile.planner.plan import Device, ExpertSplit, StagePlan
from tests.graph_cases import BATCH, CALLS, PROMPT, Graph, capture, family_graph, model_of
from tests.models import FAMILIES

PLANS: dict[str, tuple[Device, Device, Device]] = {
    "gpu/cpu/gpu": ("gpu", "cpu", "gpu"),
    "gpu/gpu/gpu": ("gpu", "gpu", "gpu"),
    "cpu/cpu/cpu": ("cpu", "cpu", "cpu"),
    "gpu/cpu/cpu": ("gpu", "cpu", "cpu"),
    "cpu/gpu/gpu": ("cpu", "gpu", "gpu"),
}


def placed(graph: Graph, devices: tuple[Device, Device, Device], *, experts: str) -> Graph:
    """The graph, placed; ``experts``: for each MoE layer "r", "m" or "c" (all on the CPU)."""
    model = model_from_graph(graph.graph_module, graph.context.blocks)
    splits = tuple(
        ExpertSplit(
            resident=int(kind == "r"), migrating=int(kind == "m"), cpu=model.experts - (kind != "c")
        )
        for kind in experts
    )
    qkv, attention, output = devices
    plan = StagePlan(
        qkv=qkv,
        attention=attention,
        output=output,
        micro_batch=1,
        block=BATCH,
        coalesced=True,
        experts=splits,
    )
    stage, workload = workload_from_graph(graph.graph_module)
    graph.context.placement = Placement(model, stage, plan, workload)
    place(graph.graph_module, graph.context)
    return graph


def device_of(node: Node) -> Device:
    """What place wrote; inputs and the output are on the CPU."""
    device: Device = node.meta.get("device", "cpu")
    return device


def values_of(graph: Graph) -> list[Value[Node]]:
    parameters = set(parameters_of(graph.graph_module, graph.context))
    return values_to_move(graph.graph_module.graph, parameters)


def sides_of(graph: Graph, attention: Device) -> dict[Node, Device]:
    sides: dict[Node, Device] = {node: device_of(node) for node in graph.graph_module.graph.nodes}
    caches = {n.args[0] for n in graph.of("attention") if n.target is torch.ops.aten.copy_.default}
    return {node: attention if node in caches else side for node, side in sides.items()}


def crossing(graph: Graph, attention: Device) -> list[tuple[Value[Node], Device]]:
    """Values that cross, with the side they come from."""
    sides = sides_of(graph, attention)
    return [
        (value, sides[value.producer])
        for value in values_of(graph)
        if any(sides[reader] != sides[value.producer] for reader in value.readers)
    ]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_decides(family: str, call: str) -> None:
    graph = family_graph(family, call)
    moe_layers = len(graph.of("experts"))
    for name, (qkv, attention, output) in PLANS.items():
        on_gpu = "gpu" in name
        kinds = "cm"[-moe_layers:] if on_gpu else "c" * moe_layers
        placed(graph, (qkv, attention, output), experts=kinds)
        home = "gpu" if on_gpu else "cpu"
        decided = {"qkv": qkv, "output": output, "head": home}
        for node in graph.nodes:
            operation = node.meta.get("operation")
            if node.target is torch.ops.aten.copy_.default or "embedding" in str(node.target):
                assert device_of(node) == "cpu"
            elif operation == "attention":
                assert device_of(node) == attention, node
            elif weight_of(node) is not None:
                assert device_of(node) == decided[operation], node
            assert node.meta["device"] == unpacked(node).meta["device"]
        expected = ["gpu" if kind == "m" else "cpu" for kind in kinds]
        assert [device_of(node) for node in graph.of("experts")] == expected


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_on_the_cpu_moves_nothing(family: str, call: str) -> None:
    graph = family_graph(family, call)
    placed(graph, ("cpu", "cpu", "cpu"), experts="c" * len(graph.of("experts")))
    assert {device_of(node) for node in graph.nodes} == {"cpu"}
    assert crossing(graph, "cpu") == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_per_layer_the_papers_loads_cross(family: str, call: str) -> None:
    """gpu/cpu/gpu: queries, keys and values down, the attention's output up (paper §4.1, T_load).

    Besides them: the embedding, scaled or not, up and logits down, and inputs without a batch.
    """
    graph = family_graph(family, call)
    model = model_from_graph(graph.graph_module, graph.context.blocks)
    placed(graph, PLANS["gpu/cpu/gpu"], experts="r" * len(graph.of("experts")))
    tokens = BATCH * (1 if call == "decode" else PROMPT)
    down, up, others = [0, 0], [0, 0], []
    for value, side in crossing(graph, "cpu"):
        layer = value.producer.meta.get("layer")
        operation = value.producer.meta.get("operation")
        if operation is None:
            others.append(value.producer)
        elif operation == "qkv" and side == "cpu":
            assert layer == 0
            assert value.size == tokens * model.hidden * model.element_bytes
        elif operation == "head":
            assert (value.size, side) == (tokens * model.vocabulary * model.element_bytes, "gpu")
        elif side == "gpu":
            down[layer] += value.size
        else:
            up[layer] += value.size
    queries, keys, values = attention_widths(family)
    new = model.kv_bytes if call != "forward" else (keys + values) * model.element_bytes
    assert down == [tokens * (queries * model.element_bytes + new)] * 2
    assert up == [tokens * output_width(family) * model.element_bytes] * 2
    assert all(n.op == "placeholder" and n.meta["val"].shape[:1] != (BATCH,) for n in others)


def attention_widths(family: str) -> tuple[int, int, int]:
    """Elements of a token's queries, keys and values, as they are projected without a cache."""
    config = model_of(family).config
    heads = config.num_attention_heads
    if rank := getattr(config, "kv_lora_rank", None):
        assert rank
        # The rotary part of a key is one for all heads; the rest comes out of kv_b with the values.
        rotary, plain, value = (
            config.qk_rope_head_dim,
            config.qk_nope_head_dim,
            config.v_head_dim,
        )
        return heads * (rotary + plain), heads * plain + rotary, heads * value
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * width, config.num_key_value_heads * width, config.num_key_value_heads * width


def output_width(family: str) -> int:
    config = model_of(family).config
    width = getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None)
    return config.num_attention_heads * (width or config.hidden_size // config.num_attention_heads)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_on_the_gpu_does_not_bring_its_cache_back(family: str) -> None:
    graph = placed(
        family_graph(family, "decode"),
        PLANS["gpu/gpu/gpu"],
        experts="r" * len(family_graph(family, "decode").of("experts")),
    )
    model = graph.context.placement.model  # type: ignore[union-attr]
    down = [v for v, side in crossing(graph, "gpu") if side == "gpu"]
    new = [v for v in down if any(r.target is torch.ops.aten.copy_.default for r in v.readers)]
    positions = sum(v.size for v in new if v.producer.meta.get("operation") is None)
    assert sum(v.size for v in new) - positions == 2 * BATCH * model.kv_bytes
    assert positions <= 2 * 8
    (logits,) = [v for v in down if v not in new]
    assert logits.producer.meta["operation"] == "head"


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("call", CALLS)
def test_no_more_moves_than_with_everything_beside_its_producer(plan: str, call: str) -> None:
    for family in FAMILIES:
        graph = family_graph(family, call)
        kinds = ("r" if "gpu" in plan else "c") * len(graph.of("experts"))
        placed(graph, PLANS[plan], experts=kinds)
        values = values_of(graph)
        best = sides_of(graph, PLANS[plan][1])
        greedy = dict(best)
        for node in graph.nodes:
            decided = weight_of(node) is not None or node.meta.get("operation") in (
                "attention",
                "experts",
            )
            writes = node.target is torch.ops.aten.copy_.default
            if not decided and not writes and "embedding" not in str(node.target):
                inputs = [greedy[source] for source in node.all_input_nodes]
                greedy[node] = inputs[-1] if inputs else "cpu"
        assert bytes_moved(values, best) <= bytes_moved(values, greedy)


def test_refuses_a_plan_for_another_number_of_layers() -> None:
    graph = family_graph("mixtral", "forward")
    with pytest.raises(ValueError, match="3 MoE layers, but the graph has 2"):
        placed(graph, PLANS["gpu/cpu/gpu"], experts="rrr")


def test_refuses_to_run_without_a_placement() -> None:
    graph = family_graph("mixtral", "forward")
    context = replace(graph.context, placement=None)
    with pytest.raises(ValueError, match="run the pass plan before"):
        place(graph.graph_module, context)


def test_symbolic_sizes_are_placed_by_their_example() -> None:
    ids = torch.zeros(BATCH, PROMPT, dtype=torch.int64)
    torch._dynamo.mark_dynamic(ids, 1)
    graph = capture(model_of("mixtral"), input_ids=ids, use_cache=False)
    placed(graph, PLANS["gpu/cpu/gpu"], experts="rr")
    static = placed(family_graph("mixtral", "forward"), PLANS["gpu/cpu/gpu"], experts="rr")
    assert sum(v.size for v, _ in crossing(graph, "cpu")) == sum(
        v.size for v, _ in crossing(static, "cpu")
    )


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Value[int]], dict[int, Device]]:
    """Up to 14 places in topological order, at most 10 of them free."""
    count = draw(st.integers(2, 14))
    pinned = draw(
        st.dictionaries(st.integers(0, count - 1), st.sampled_from(["gpu", "cpu"]), max_size=count)
    )
    for place_number in range(count):
        if count - len(pinned) <= 10:
            break
        pinned.setdefault(place_number, "cpu")
    values = []
    for producer in range(count - 1):
        readers = draw(st.sets(st.integers(producer + 1, count - 1), max_size=4))
        if readers:
            values.append(Value(draw(st.integers(0, 9)), producer, tuple(sorted(readers))))
    return values, pinned


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_the_cut_is_optimal(case: tuple[list[Value[int]], dict[int, Device]]) -> None:
    values, pinned = case

    def cost(sides: dict[int, Device]) -> tuple[int, int]:
        transfers = sum(any(sides[r] != sides[v.producer] for r in v.readers) for v in values)
        return bytes_moved(values, sides), transfers

    found = minimum_cut(values, pinned)
    assert all(found[p] == side for p, side in pinned.items() if p in found)
    free = [p for p in found if p not in pinned]
    devices: tuple[Device, Device] = ("gpu", "cpu")
    assert cost(found) == min(
        cost({**found, **dict(zip(free, sides, strict=True))})
        for sides in product(devices, repeat=len(free))
    )
    assert minimum_cut(values, pinned) == found


def test_equal_cuts_are_made_as_late_as_possible() -> None:
    chain = [Value(8, number, (number + 1,)) for number in range(4)]
    assert minimum_cut(chain, {0: "gpu", 4: "cpu"}) == dict(enumerate(["gpu"] * 4 + ["cpu"]))
    assert minimum_cut(chain, {0: "cpu", 4: "gpu"}) == dict(enumerate(["cpu"] * 4 + ["gpu"]))


def test_one_transfer_serves_all_readers_of_a_side() -> None:
    # Three readers on the GPU of one value of 4 bytes: cheaper than the 9 before it.
    values = [Value(9, "input", ("free",)), Value(4, "free", ("a", "b", "c"))]
    pinned: dict[str, Device] = {"input": "cpu", "a": "gpu", "b": "gpu", "c": "gpu"}
    assert minimum_cut(values, pinned)["free"] == "cpu"
