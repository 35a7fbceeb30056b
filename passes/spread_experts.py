"""Expert weights' pages → the NUMA nodes whose threads read them, on request."""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

import coxcompile.ops  # noqa: F401  (defines the op)
from coxcompile.passes.context import PassContext, parameters_of

LEAST_SHARE = 0.95
"""Of the bytes; less is warned of. Pages at the ends of a part may belong to others."""

_logger = logging.getLogger("coxcompile")


def spread_experts(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Move each node's part of every expert's rows into its memory; the graph stays as it is.

    The kernel's threads take the n-th node's part of the rows, wherever it lies
    (csrc/expert_tasks.h). Pages move, and neither addresses nor contents change; no byte is added.

    Must not fire without ``spread_experts``, nor where that was refused
    (:func:`coxcompile.coexecution.refuse_contradictions`). Leaves alone what has no rows of outputs
    (transposed weights) and what is no Parameter, and on a machine of one node everything.
    """
    nodes = torch.ops.coxmoe.memory_nodes() if context.options.spread_experts else []
    if len(nodes) < 2:
        return graph_module
    placed, total = 0, 0
    for weight, projections in _weights(graph_module, context):
        placed += sum(torch.ops.coxmoe.spread_over_nodes(weight, projections))
        total += weight.nbytes
    shown = f"{placed / 1e9:.2f} of {total / 1e9:.2f} GB of the experts' weights"
    if placed < LEAST_SHARE * total:
        _logger.warning(
            "coxcompile: spread_experts: only %s lie on the NUMA nodes that read them, %s; the "
            "other pages are larger than a node's part of an expert (transparent huge pages), "
            "shared with other processes, or more than the nodes have memory for.",
            *(shown, nodes),
        )
    else:
        _logger.info("coxcompile: %s lie on the NUMA nodes that read them, %s.", shown, nodes)
    return graph_module


def _weights(graph_module: GraphModule, context: PassContext) -> Iterator[tuple[Tensor, int]]:
    """Each stacked weight once, with how many projections it holds."""
    parameters = parameters_of(graph_module, context)
    seen = set()
    for experts in graph_module.graph.find_nodes(
        op="call_function", target=torch.ops.coxmoe.coalesced_experts.default
    ):
        if experts.kwargs["transposed"]:
            continue
        # Concatenated gate and up are two projections; interleaved ones count as one.
        of_gate_up = 2 if experts.kwargs["gate_layout"] == "concatenated" else 1
        for node, of_expert in ((experts.args[3], of_gate_up), (experts.args[4], 1)):
            assert isinstance(node, Node)
            weight = parameters.get(node)
            if weight is not None and weight.data_ptr() not in seen:
                seen.add(weight.data_ptr())
                yield weight, weight.shape[0] * of_expert
