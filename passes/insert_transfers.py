"""Values that change sides → an asynchronous transfer each, started once and waited for."""

import torch
from torch.fx import Graph, GraphModule, Node

from coxcompile.passes.context import PassContext, parameters_of
from coxcompile.passes.devices import add_node, device_of, is_host_view
from coxcompile.runtime import instructions

aten = torch.ops.aten

# They move data themselves.
_READ_ON_THE_HOST = (
    *(instructions.device_cache, instructions.fetch_expert, instructions.fetch_weights),
)


def insert_transfers(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Put ``transfer_start`` and ``transfer_wait`` between a value and its readers on another side.

    One pair a value and side, however many read it; of the rows that go to the CPU's experts, and
    of their results, ``transfer_rows_start``. Parameters and constants that the accelerator reads
    become ``device_weight``, copied before the first call, unless the plan has them fetched
    (``resident_share``): see :mod:`coxcompile.passes.fetch_weights`.

    Must not fire between nodes of one side, nor on weights that an instruction reads on the host.
    """
    graph = graph_module.graph
    constants = set(parameters_of(graph_module, context)) | set(graph.find_nodes(op="get_attr"))
    moved: dict[tuple[Node, str], Node] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder" or node.op == "get_attr" or is_host_view(node):
            continue
        side = device_of(node)
        for source in node.all_input_nodes:
            if device_of(source) == side or node.target in _READ_ON_THE_HOST:
                continue
            if (source, side) not in moved:
                moved[source, side] = _move(graph, source, node, side, source in constants)
            node.replace_input_with(source, moved[source, side])
    return graph_module


def _move(graph: Graph, source: Node, reader: Node, side: str, constant: bool) -> Node:
    value = source.meta["val"]
    # An input belongs to no layer: its transfer belongs to the first that reads it.
    like = reader if source.op == "placeholder" else source
    after = source
    while after.next.op in ("placeholder", "get_attr"):
        after = after.next
    with graph.inserting_after(after):
        if constant:
            return add_node(
                graph, like, instructions.device_weight, (source,), torch.empty_like(value), side
            )
        packed = source.target in (instructions.pack_rows, instructions.run_cpu_experts)
        start = instructions.transfer_rows_start if packed else instructions.transfer_start
        there = (
            tuple(torch.empty_like(part) for part in value)
            if isinstance(value, tuple)
            else torch.empty_like(value)
        )
        started = add_node(graph, like, start, (source, side), there, side)
        started.meta["may_be_empty"] = _is_cache(source)
    with graph.inserting_after(started):
        return add_node(graph, like, instructions.transfer_wait, (started,), there, side)


def _is_cache(source: Node) -> bool:
    """Whether the graph writes to it: before prefill it is often empty, and need not be copied."""
    return any(
        user.target is aten.copy_.default and user.args[0] is source for user in source.users
    )
