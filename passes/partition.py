"""Nodes of one side that follow one another → partitions, each compiled and started as a whole."""

import operator
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.utils.fuser_utils import erase_nodes, fuse_as_graphmodule, topo_sort

from coxcompile.passes.context import PassContext
from coxcompile.passes.devices import INHERITED, cache_of, device_of, is_host_view, is_view
from coxcompile.runtime.instructions import INSTRUCTIONS

aten = torch.ops.aten
PREFIX = "partition_"
Kind = tuple[str, int, int, int]


def partition(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Fuse operators into submodules: one a side, micro-batch and stretch between transfers.

    A node's level is how often the longest path to it leaves its side or micro-batch or passes an
    instruction. Nodes of one side, micro-batch and level make a partition: no path leaves such a
    set and comes back, so the partitions are convex and the graph of them has no cycle. A node that
    only later ones of its own kind read joins them, so that no partition is made for it alone.

    Must not fuse instructions, nor slices of inputs, nor micro-batches' slices: the executor makes
    these as views, so that a partition can write to the input and is like others. Where layers wait
    for their weights, no partition spans two layers: it would need the weights of both at once.
    """
    # Not at the top: PyTorch 2.8 lacks it, and compiles for CPUs all the same.
    from torch.fx.passes.tools_common import stable_topological_sort

    assert context.placement is not None
    kinds = _kinds(graph_module, by_layer=not context.placement.plan.fetches_overlap)
    levels = _levels(graph_module, kinds)
    groups: dict[Any, list[Node]] = defaultdict(list)
    for node, level in levels.items():
        if _is_fusable(node) and node.target is not operator.getitem:
            groups[kinds[node], level].append(node)
    for node in graph_module.graph.nodes:
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, Node) and _is_fusable(node):
            groups[kinds[source], levels[source]].append(node)
    for number, nodes in enumerate(groups.values()):
        _fuse(graph_module, topo_sort(nodes), f"{PREFIX}{number}")
    stable_topological_sort(graph_module)
    for node in graph_module.graph.find_nodes(op="call_module"):
        _describe(graph_module, node)
    return graph_module


def _fuse(graph_module: GraphModule, nodes: list[Node], name: str) -> None:
    """Make a submodule of nodes in topological order, where the last one is.

    As ``fuse_by_partitions`` does, which before PyTorch 2.13 refuses partitions without results.
    """
    inner, inputs, outputs = fuse_as_graphmodule(
        graph_module, nodes, name, dict.fromkeys(nodes), always_return_tuple=True
    )
    graph = graph_module.graph
    graph_module.add_submodule(name, inner)
    with graph.inserting_after(nodes[-1]):
        call = graph.call_module(name, args=inputs)
    call.meta["val"] = tuple(output.meta.get("val") for output in outputs)
    for position, output in enumerate(outputs):
        with graph.inserting_after(call):
            result = graph.call_function(operator.getitem, (call, position))
        output.replace_all_uses_with(result, propagate_meta=True)
    erase_nodes(graph_module, nodes)


def _is_fusable(node: Node) -> bool:
    if node.op != "call_function" or node.target in INSTRUCTIONS or is_view(node):
        return False
    if node.target is operator.getitem:
        return _is_fusable(node.args[0])  # type: ignore[arg-type]
    return True


def _kinds(graph_module: GraphModule, *, by_layer: bool) -> dict[Node, Kind]:
    """Side, micro-batch and block of every node, and its layer if ``by_layer``."""
    return {
        node: (
            device_of(node),
            node.meta.get("micro_batch", -1),
            node.meta.get("block", -1),
            node.meta.get("layer", -1) if by_layer else -1,
        )
        for node in graph_module.graph.nodes
    }


def _levels(graph_module: GraphModule, kinds: dict[Node, Kind]) -> dict[Node, int]:
    def steps(source: Node, reader: Node) -> int:
        """Whether the way from one node to the next leaves a partition."""
        if source.op in ("placeholder", "get_attr") or is_view(source):
            return 0
        fused = _is_fusable(source) and _is_fusable(reader)
        return 0 if fused and kinds[source] == kinds[reader] else 1

    levels: dict[Node, int] = {}
    for node in graph_module.graph.nodes:
        before = [*node.all_input_nodes, *_read_before(node)]
        levels[node] = max((levels[s] + steps(s, node) for s in before), default=0)
    for node in reversed(graph_module.graph.nodes):
        if _is_fusable(node) and node.users and not any(steps(node, u) for u in node.users):
            levels[node] = min(levels[user] for user in node.users)
    return levels


def _read_before(node: Node) -> Iterator[Node]:
    """What reads the input that a node writes to: it has to come first, and stands before it."""
    if node.target is not aten.copy_.default:
        return
    written = node.args[0]
    assert isinstance(written, Node)
    for source in {written, cache_of(written)}:
        yield from (user for user in source.users if user is not node and not is_host_view(user))


def _describe(graph_module: GraphModule, node: Node) -> None:
    """A partition belongs to its nodes' last layer and operation, and to their side."""
    inner: Any = getattr(graph_module, str(node.target))
    calls = [n for n in inner.graph.nodes if n.op == "call_function"]
    last = max(reversed(calls), key=_depth)
    node.meta = {key: last.meta[key] for key in INHERITED if key in last.meta}
    values = [result.meta["val"] for result in inner.graph.output_node().args[0]]
    # Not device_of: in here, a slice of what another partition made looks like one of an input.
    node.meta |= {"val": tuple(values), "device": last.meta["device"]}
    for user in node.users:
        user.meta = {**node.meta, "val": values[cast(int, user.args[1])]}


def _depth(call: Node) -> tuple[bool, int]:
    """How far down the model; the head comes after all layers."""
    return call.meta.get("operation") == "head", call.meta.get("layer", -1)
