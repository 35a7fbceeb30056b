"""Each MoE block → one ``coxmoe::coalesced_experts`` over the whole batch (paper §4.1, OP3)."""

import torch
from torch.fx import GraphModule

import coxcompile.ops  # noqa: F401  (defines the op)
from coxcompile.passes.context import MoEBlock, PassContext


def coalesce(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Replace each block that find_moe recorded; what it leaves unused is removed.

    Fires on nothing else: a block that was not certain is not in ``context.blocks``.
    """
    for block in context.blocks:
        _replace(graph_module, block)
    graph_module.graph.eliminate_dead_code()
    return graph_module


def _replace(graph_module: GraphModule, block: MoEBlock) -> None:
    output = block.output
    with graph_module.graph.inserting_before(output):
        experts = graph_module.graph.call_function(
            torch.ops.coxmoe.coalesced_experts.default,
            (
                block.hidden_states,
                block.expert_ids,
                block.routing_weights,
                block.gate_up,
                block.down,
                block.gate_up_bias,
                block.down_bias,
            ),
            {
                "activation": block.activation,
                "gate_layout": block.gate_layout,
                "transposed": block.transposed,
                "alpha": block.alpha,
                "limit": block.limit,
            },
        )
    experts.meta = dict(output.meta)
    output.replace_all_uses_with(experts)
