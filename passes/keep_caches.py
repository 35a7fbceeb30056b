"""KV caches that the accelerator's attention updates → the host's updated beside it, in place."""

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from coxcompile.passes.context import PassContext
from coxcompile.passes.devices import INHERITED, add_node, cache_of, device_of, is_host_view
from coxcompile.runtime import instructions

aten = torch.ops.aten
LONGEST_UPDATE = 16


def keep_caches(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Compute on both sides what a mutated input becomes, so that only new elements cross the link.

    Matches ``copy_(cache, updated)`` on the CPU whose ``updated`` the accelerator computes. Writes
    the update (``index_copy`` of new keys into the cache) a second time on the CPU, from the new
    elements. Of the sequences whose cache the plan keeps in VRAM (``kv_gpu_share``) the accelerator
    reads a ``device_cache`` in place of the input and updates it in place too.

    Must not fire where the update takes more than ``LONGEST_UPDATE`` nodes: it is then no insertion
    of new elements, and what it gives crosses the link whole.
    """
    assert context.placement is not None
    for write in graph_module.graph.find_nodes(op="call_function", target=aten.copy_.default):
        cache, updated = write.args
        assert isinstance(cache, Node)
        assert isinstance(updated, Node)
        if device_of(updated) != "gpu" or cache_of(cache).op != "placeholder":
            continue
        chain = _dependent(updated, cache)
        if not chain or len(chain) > LONGEST_UPDATE:
            continue
        _update_on_host(graph_module.graph, write, chain)
        if _stays_in_vram(cache, context):
            _update_on_device(graph_module.graph, cache, updated)
    return graph_module


def _dependent(node: Node, source: Node) -> list[Node]:
    """What lies between ``source`` and ``node``, which it includes, in topological order."""
    nodes = list(source.graph.nodes)
    reached = {source}
    for current in nodes[: nodes.index(node) + 1]:
        if not reached.isdisjoint(current.all_input_nodes):
            reached.add(current)
    between: set[Node] = set()
    ahead = [node]
    while ahead:
        current = ahead.pop()
        if current in reached and current not in between and current is not source:
            between.add(current)
            ahead += current.all_input_nodes
    return [current for current in nodes if current in between]


def _update_on_host(graph: Graph, write: Node, chain: list[Node]) -> None:
    copies: dict[Node, Node] = {}
    with graph.inserting_before(write):
        for node in chain:
            copies[node] = graph.node_copy(node, lambda source: copies.get(source, source))
            copies[node].meta = {**node.meta, "device": "cpu"}
    write.args = map_arg(write.args, lambda source: copies.get(source, source))


def _stays_in_vram(cache: Node, context: PassContext) -> bool:
    assert context.placement is not None
    batch = int(cache_of(cache).meta["val"].shape[0])
    last = min(int(cache.args[3]), batch) if is_host_view(cache) else batch  # type: ignore[arg-type]
    return last <= round(context.placement.plan.kv_gpu_share * batch)


def _update_on_device(graph: Graph, cache: Node, updated: Node) -> None:
    value = cache.meta["val"]
    readers = [user for user in cache.users if device_of(user) == "gpu"]
    with graph.inserting_after(cache):
        copy = add_node(
            graph, updated, instructions.device_cache, (cache,), torch.empty_like(value), "gpu"
        )
    for reader in readers:
        reader.replace_input_with(cache, copy)
    # Last, since whatever else reads the copy reads what was there before.
    with graph.inserting_before(graph.output_node()):
        write = graph.call_function(aten.copy_.default, (copy, updated))
    write.meta = {key: updated.meta[key] for key in INHERITED if key in updated.meta}
    write.meta |= {"val": copy.meta["val"], "device": "gpu"}
