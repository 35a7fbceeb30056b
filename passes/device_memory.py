"""Bytes on the accelerator: what a co-execution graph holds throughout, and what its nodes add."""

import operator

import torch
from torch.fx import GraphModule, Node

from coxcompile.passes.context import PassContext
from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import bytes_of, packed_bytes, stream_of
from coxcompile.runtime.expert_layer import ExpertLayer

aten = torch.ops.aten
_WITHOUT_ALLOCATION = (
    *(instructions.fetch_expert, instructions.fetch_weights, instructions.free),
    *(instructions.run_experts, instructions.add_rows),
    *(instructions.record_event, instructions.wait_event),
)


def held_throughout(graph_module: GraphModule, context: PassContext) -> dict[str, int]:
    """Items by name, in bytes: weights, the experts' arena, caches, buffers for fetched weights."""
    graph = graph_module.graph
    layers = context.expert_layers
    weights = graph.find_nodes(op="call_function", target=instructions.device_weight)
    caches = graph.find_nodes(op="call_function", target=instructions.device_cache)
    fetches = graph.find_nodes(op="call_function", target=instructions.fetch_weights)
    buffers: dict[int, int] = {}
    for fetch in fetches:
        buffers[fetch.args[1]] = max(buffers.get(fetch.args[1], 0), packed_bytes(fetch.meta["val"]))
    return {
        "weights": sum(bytes_of(node.meta["val"]) for node in weights),
        "experts": arena_slots(layers) * max((layer.expert_bytes for layer in layers), default=0),
        "tables of experts": sum(8 * layer.experts * (len(layer.tables) + 1) for layer in layers),
        "KV cache": sum(bytes_of(node.meta["val"]) for node in caches),
        "fetched weights": sum(buffers.values()),
    }


def arena_slots(layers: list[ExpertLayer]) -> int:
    """Slots for all resident experts and for the migrating ones on their way."""
    ranks = ((layer, rank) for layer in layers for table in layer.tables for rank in table)
    return max((layer.slot_of(rank) + 1 for layer, rank in ranks), default=0)


def room_for_values(graph_module: GraphModule, context: PassContext) -> int:
    """Bytes of the VRAM that are left for what comes and goes during a call."""
    return context.vram - sum(held_throughout(graph_module, context).values())


def allocates(graph_module: GraphModule, node: Node) -> int:
    """Bytes that exist from this node on until its buffers are freed."""
    stream = stream_of(node)
    if stream in (None, "host", "staging") or node.meta.get("device") != "gpu":
        return 0
    if node.target in _WITHOUT_ALLOCATION:
        return 0
    return bytes_of(node.meta.get("val"))


def workspace(graph_module: GraphModule, node: Node) -> int:
    """Bytes that exist only while a node is computed: a bound, since compiling fuses operators.

    Of experts only where they run on Triton kernels: what PyTorch's products use is not known.
    """
    if node.target is instructions.run_experts:
        return int(node.meta["kernel_workspace"])
    if node.op == "call_module" and node.meta["device"] == "gpu":
        return _intermediates(getattr(graph_module, str(node.target)).graph)
    return 0


def _intermediates(graph: torch.fx.Graph) -> int:
    nodes = list(graph.nodes)
    results = set(graph.output_node().all_input_nodes)
    last_use: dict[Node, Node] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            last_use[_owner(source)] = node
    held, most = 0, 0
    owned: dict[Node, int] = {}
    for node in nodes:
        if node.op == "call_function" and _owner(node) is node and node not in results:
            owned[node] = bytes_of(node.meta.get("val"))
            held += owned[node]
            most = max(most, held)
        for source in {_owner(source) for source in node.all_input_nodes}:
            if last_use.get(source) is node:
                held -= owned.pop(source, 0)
    return most


def _owner(node: Node) -> Node:
    """The node whose memory a view is of."""
    while node.op == "call_function" and _is_view(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _is_view(node: Node) -> bool:
    if node.target is operator.getitem:
        return True
    if node.target in (aten.reshape.default, aten.contiguous.default):
        return bool(node.all_input_nodes[0].meta["val"].is_contiguous())
    schema = getattr(node.target, "_schema", None)
    returns = schema.returns if schema is not None else []
    return bool(returns) and any(r.alias_info is not None for r in returns)
