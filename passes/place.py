"""Each operation → "gpu" or "cpu": the plan's, or where the least has to cross the link."""

import math
import operator
from collections.abc import Collection
from typing import cast

import torch
from torch.fx import Graph, GraphModule, Node

from coxcompile.passes.context import PassContext, parameters_of
from coxcompile.passes.find_layers import is_experts
from coxcompile.passes.minimum_cut import Value, minimum_cut
from coxcompile.passes.moe_forms.patterns import is_call
from coxcompile.passes.products import weight_of
from coxcompile.planner.plan import Device, StagePlan
from coxcompile.symbolic_sizes import has_guarding_hint, optimization_hint

aten = torch.ops.aten


def place(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Write ``meta["device"]`` on every call, from ``context.placement`` and find_layers' labels.

    The plan decides for products with weights (qkv, output), for attention and for experts (the
    GPU if the plan has any of the layer's there); the head's are where hidden states are between
    layers. Tables of embeddings stay in host memory, write-backs of inputs and sizes are the
    CPU's. Everything else goes where the least crosses the link (:mod:`minimum_cut`). Inputs and
    results are in host memory. Weights and constants weigh nothing, as each side has its own; nor
    does a cache on the side of its attention, or its write-back, which repeats the update on the
    CPU from the new elements.

    Changes nothing else. Must not fire without a placement.

    Raises:
        ValueError: there is no placement, the plan is for another number of MoE layers, or a size
            is symbolic and has no hint.
    """
    if context.placement is None:
        raise ValueError("context.placement is None: run the pass plan before place")
    plan = context.placement.plan
    graph = graph_module.graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    tables = set(parameters_of(graph_module, context))
    pinned = _pinned(calls, plan, tables) | _pinned_inputs(graph, plan)
    sides = minimum_cut(values_to_move(graph, tables), pinned)
    for node in calls:
        producer = unpacked(node)
        node.meta["device"] = pinned.get(producer) or sides.get(producer, "cpu")
    return graph_module


def values_to_move(graph: Graph, parameters: Collection[Node]) -> list[Value[Node]]:
    """Every value that one side may have to fetch from the other, in order; all but weights."""
    extra = _read_by_write_backs(graph)
    values = []
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op in ("get_attr", "output") or node in parameters:
            continue
        if isinstance(value, torch.Tensor):
            readers = [unpacked(user) for user in node.users if _reads(user, node)]
            readers += extra.get(node, [])
            if readers:
                values.append(Value(_bytes(node), unpacked(node), tuple(readers)))
    return values


def unpacked(node: Node) -> Node:
    """The node that computes ``node``: of a result that was taken from a tuple, the tuple's."""
    while is_call(node, operator.getitem):
        node = cast(Node, node.args[0])
    return node


def _pinned(calls: list[Node], plan: StagePlan, tables: Collection[Node]) -> dict[Node, Device]:
    """What the plan decides, and what has to be on the CPU."""
    moe_layers = list(dict.fromkeys(node.meta["layer"] for node in calls if is_experts(node)))
    if len(moe_layers) != len(plan.experts):
        raise ValueError(
            f"the plan splits the experts of {len(plan.experts)} MoE layers, but the graph has "
            f"{len(moe_layers)}: give the plan of this model"
        )
    gpu_experts = [split.resident + split.migrating > 0 for split in plan.experts]
    home: Device = "gpu" if any(gpu_experts) else "cpu"
    products: dict[str, Device] = {"qkv": plan.qkv, "output": plan.output, "head": home}
    pinned: dict[Node, Device] = {}
    for node in calls:
        operation = node.meta.get("operation")
        if not isinstance(node.meta.get("val"), torch.Tensor | tuple | list) or _is_on_host(
            node, tables
        ):
            pinned[node] = "cpu"
        elif is_experts(node):
            pinned[node] = "gpu" if gpu_experts[moe_layers.index(node.meta["layer"])] else "cpu"
        elif operation == "attention":
            pinned[unpacked(node)] = plan.attention
        elif operation in products and weight_of(node) is not None:
            pinned[node] = products[operation]
    return pinned


def _pinned_inputs(graph: Graph, plan: StagePlan) -> dict[Node, Device]:
    """The graph's inputs and its output: in host memory, but for caches, which follow attention."""
    pinned: dict[Node, Device] = {
        node: "cpu" for node in graph.nodes if node.op in ("placeholder", "output")
    }
    for write in _cache_write_backs(graph):
        pinned[cast(Node, write.args[0])] = plan.attention
    return pinned


def _is_on_host(node: Node, tables: Collection[Node]) -> bool:
    return is_call(node, aten.copy_.default) or (
        is_call(node, aten.embedding.default) and node.args[0] in tables
    )


def _cache_write_backs(graph: Graph) -> list[Node]:
    writes = graph.find_nodes(op="call_function", target=aten.copy_.default)
    return [node for node in writes if node.meta.get("operation") == "attention"]


def _reads(user: Node, node: Node) -> bool:
    """Whether ``user`` needs the elements of ``node`` where it runs."""
    if is_call(user, aten.copy_.default):
        return user.args[1] is node and user.meta.get("operation") != "attention"
    value = user.meta.get("val")
    return user.op == "output" or isinstance(value, torch.Tensor | tuple | list)


def _read_by_write_backs(graph: Graph) -> dict[Node, list[Node]]:
    """What the caches' updates read besides the cache: the CPU needs it to repeat them."""
    read: dict[Node, list[Node]] = {}
    for write in _cache_write_backs(graph):
        cache, stack = cast(Node, write.args[0]), [cast(Node, write.args[1])]
        updates: set[Node] = set()
        while stack:
            node = stack.pop()
            if node.meta.get("operation") != "attention":
                read.setdefault(node, []).append(write)
            elif node not in updates:
                updates.add(node)
                stack.extend(source for source in node.all_input_nodes if source is not cache)
    return read


def _bytes(node: Node) -> int:
    """What a transfer moves: all elements, also those that a view repeats (``expand``)."""
    value: torch.Tensor = node.meta["val"]
    if not all(has_guarding_hint(size) for size in value.shape):
        raise ValueError(
            f"{node.name} has a size that is not known at compile time ({list(value.shape)}): "
            "compile with dynamic=False, or call with an example of that size first"
        )
    return math.prod(optimization_hint(size) for size in value.shape) * value.element_size()
