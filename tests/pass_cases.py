"""Graphs of tiny models on their way through the passes of co-execution."""

import copy
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Node

from coxcompile.options import Options
from coxcompile.passes import COEXECUTION_PASSES, PassContext
from coxcompile.passes.context import Placement
from coxcompile.planner.model_from_graph import model_from_graph, workload_from_graph
from coxcompile.planner.plan import Device, ExpertSplit, StagePlan
from tests.graph_cases import BATCH, Graph, family_graph

EXPERTS = torch.ops.coxmoe.coalesced_experts.default
VRAM = 1 << 26


@cache
def _found(family: str, call: str, dtype: torch.dtype) -> tuple[Graph, Placement]:
    graph = family_graph(family, call, dtype)
    stage, workload = workload_from_graph(graph.graph_module)
    model = model_from_graph(graph.graph_module, graph.context.blocks)
    return graph, Placement(model, stage, plan_of("cpu/cpu/cpu"), workload)


def plan_of(devices: str, experts: Sequence[ExpertSplit] = (), **fields: Any) -> StagePlan:
    """A plan for the devices "qkv/attention/output", with the usual fields of ``planned``."""
    sides: list[Device] = ["gpu" if side == "gpu" else "cpu" for side in devices.split("/")]
    usual = {"micro_batch": 2, "block": BATCH, "coalesced": True, "staging_experts": 2}
    qkv, attention, output = sides
    return StagePlan(
        qkv=qkv,
        attention=attention,
        output=output,
        experts=tuple(experts),
        **{**usual, **fields},
    )


def planned(
    last: str,
    family: str = "qwen3_moe",
    call: str = "decode",
    *,
    devices: str = "gpu/cpu/gpu",
    experts: tuple[int, int] = (2, 2),
    cpu_layers: Collection[int] = (),
    dtype: torch.dtype = torch.float32,
    vram: int = VRAM,
    **fields: Any,
) -> Graph:
    """A tiny model's graph, planned, after the pass of the name ``last``.

    Args:
        devices: of qkv, attention and output.
        experts: how many are resident and migrating; the others are the CPU's.
        cpu_layers: MoE layers whose experts are all the CPU's.
        vram: bytes.
        **fields: of the StagePlan, in place of two sequences a micro-batch, all in one block, with
            coalesced experts and two slots for migrating ones.
    """
    graph, placement = _found(family, call, dtype)
    model = placement.model
    splits = []
    for layer in range(model.moe_layers):
        resident, migrating = (0, 0) if layer in cpu_layers else experts
        rest = model.experts - resident - migrating
        splits.append(ExpertSplit(resident=resident, migrating=migrating, cpu=rest))
    context = replace(
        graph.context,
        placement=replace(placement, plan=plan_of(devices, splits, **fields)),
        vram=vram,
        expert_layers=[],
    )
    names = [run_pass.__name__ for run_pass in COEXECUTION_PASSES]
    graph_module = copy.deepcopy(graph.graph_module)
    for run_pass in COEXECUTION_PASSES[names.index("place") : names.index(last) + 1]:
        graph_module = run_pass(graph_module, context)
        graph_module.graph.lint()
        graph_module.recompile()
    return Graph(graph_module, context)


def calls(graph: Graph, target: Any) -> list[Node]:
    """The nodes that call ``target``, in order."""
    return list(graph.graph_module.graph.find_nodes(op="call_function", target=target))


def partitions(graph: Graph, device: str | None = None) -> list[Node]:
    """The nodes that call partitions, of one side or of both, in order."""
    nodes = graph.graph_module.graph.find_nodes(op="call_module")
    return [node for node in nodes if device in (None, node.meta["device"])]


def inside(graph: Graph, partition: Node) -> list[Node]:
    """The operators of a partition."""
    module: GraphModule = getattr(graph.graph_module, str(partition.target))
    return [node for node in module.graph.nodes if node.op == "call_function"]


def count(graph: Graph) -> Counter[Any]:
    """How many nodes call each target."""
    return Counter(node.target for node in graph.graph_module.graph.nodes if node.op != "output")


def added(before: Graph, after: Graph) -> dict[Any, int]:
    """How many more nodes call each target than before; fewer: a negative number."""
    change = count(after)
    change.subtract(count(before))
    return {target: number for target, number in change.items() if number}


def position(graph: Graph) -> dict[Node, int]:
    """Where each node stands."""
    return {node: number for number, node in enumerate(graph.graph_module.graph.nodes)}


def hand_made(graph: FxGraph, vram: int = VRAM, **plan: Any) -> Graph:
    """A graph written in a test, of inputs that are no parameters."""
    inputs = graph.find_nodes(op="placeholder")
    values = [node.meta["val"] for node in inputs]
    context = PassContext(Options(), values, [node.name for node in inputs], vram=vram)
    _, placement = _found("qwen3_moe", "decode", torch.float32)
    devices = plan.pop("devices", "gpu/gpu/gpu")
    context.placement = replace(placement, plan=plan_of(devices, **plan))
    return Graph(GraphModule(torch.nn.Module(), graph), context)


def call(graph: FxGraph, target: Any, *arguments: Any, **meta: Any) -> Node:
    """Append a node; its value is computed from its arguments' unless it is given as ``val``."""
    node = graph.call_function(target, arguments)
    if "val" not in meta:
        values = torch.fx.node.map_arg(arguments, lambda source: source.meta["val"])
        meta["val"] = target(*values)
    node.meta = meta
    return node


def placeholder(graph: FxGraph, name: str, *shape: int) -> Node:
    """Append a float32 input."""
    node = graph.placeholder(name)
    node.meta = {"val": torch.zeros(shape)}
    return node
