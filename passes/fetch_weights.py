"""Weights outside the experts that VRAM does not hold → fetched for each layer, ahead of need."""

import operator
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from coxcompile.passes.context import PassContext, parameters_of
from coxcompile.passes.devices import add_node, device_of
from coxcompile.runtime import instructions

Key = tuple[int, int]


def fetch_weights(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Write ``fetch_weights`` for the parameters of a layer that the plan does not keep in VRAM.

    Of the parameters that a layer's nodes on the accelerator read, ``1 - resident_share`` of the
    bytes, as close as whole parameters come to it, cross the link once a block of sequences.

    Must not fire on parameters that more than one layer reads, nor on routed experts, which
    migrate by :mod:`coxcompile.passes.split_experts`.
    """
    assert context.placement is not None
    plan = context.placement.plan
    if plan.resident_share >= 1:
        return graph_module
    parameters = parameters_of(graph_module, context)
    for layer, read in sorted(_read_by_layers(parameters).items()):
        fetched = _choose(read, parameters, 1 - plan.resident_share)
        for block in sorted({block for users in read.values() for block, _ in users}):
            _fetch(graph_module.graph, layer, block, fetched, read, bool(plan.fetches_overlap))
    return graph_module


def _read_by_layers(
    parameters: Mapping[Node, Tensor],
) -> dict[int, dict[Node, list[tuple[int, Node]]]]:
    """For each layer the parameters only it reads, on the accelerator: their readers by block."""
    layers: dict[int, dict[Node, list[tuple[int, Node]]]] = defaultdict(dict)
    for parameter in parameters:
        read_in = {user.meta.get("layer") for user in parameter.users}
        layer = next(iter(read_in), None)
        if len(read_in) != 1 or layer is None:
            continue
        if any(device_of(user) != "gpu" for user in parameter.users):
            continue
        layers[layer][parameter] = [(u.meta.get("block", 0), u) for u in parameter.users]
    return layers


def _choose(
    read: Mapping[Node, object], parameters: Mapping[Node, Tensor], share: float
) -> list[Node]:
    """Large parameters first, so that small ones bring the sum close to the share."""
    wanted = share * sum(parameters[node].nbytes for node in read)
    chosen = []
    for node in sorted(read, key=lambda node: parameters[node].nbytes, reverse=True):
        if parameters[node].nbytes <= 2 * wanted:
            chosen.append(node)
            wanted -= parameters[node].nbytes
        if wanted <= 0:
            break
    return chosen


def _fetch(
    graph: Graph,
    layer: int,
    block: int,
    fetched: list[Node],
    read: Mapping[Node, list[tuple[int, Node]]],
    overlap: bool,
) -> None:
    if not fetched:
        return
    readers = [user for node in fetched for number, user in read[node] if number == block]
    order = {node: number for number, node in enumerate(graph.nodes)}
    first = min(readers, key=order.__getitem__)
    values = tuple(node.meta["val"] for node in fetched)
    with graph.inserting_before(first):
        staged = add_node(graph, first, instructions.stage_weights, (None, *fetched), None, "cpu")
        arrived = add_node(
            graph,
            first,
            instructions.fetch_weights,
            (staged, layer % 2 if overlap else 0),
            values,
            "gpu",
        )
        for added in (staged, arrived):
            added.meta.pop("micro_batch", None)
        for index, node in enumerate(fetched):
            weight = add_node(
                graph, first, operator.getitem, (arrived, index), values[index], "gpu"
            )
            weight.meta.pop("micro_batch", None)
            for number, user in read[node]:
                if number == block:
                    user.replace_input_with(node, weight)
