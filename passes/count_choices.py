"""Each coalesced block → also counts which experts its tokens chose (paper §4.3), on request."""

import torch
from torch.fx import GraphModule, Node

import coxcompile.ops  # noqa: F401  (defines the op)
from coxcompile.passes.context import PassContext, parameter_path
from coxcompile.passes.moe_forms.patterns import shape_of
from coxcompile.runtime.choice_counts import ChoiceCounts


def count_choices(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Put a ``coxmoe::count_choices_`` before each ``coxmoe::coalesced_experts``.

    It adds the block's expert ids to the counter that ``options.count_choices`` holds for the
    block's layer, a buffer of the graph. Runs after the passes that read graphs without mutation.
    Must not fire without that option. A block that was left alone is not counted; the
    counts say so.
    """
    counts = context.options.count_choices
    if counts is None:
        return graph_module
    counts.skipped |= {block.path: block.reason for block in context.skipped}
    for number, experts in enumerate(
        graph_module.graph.find_nodes(
            op="call_function", target=torch.ops.coxmoe.coalesced_experts.default
        )
    ):
        _count(graph_module, experts, f"choice_counts_{number}", counts)
    return graph_module


def _count(graph_module: GraphModule, block: Node, attribute: str, counts: ChoiceCounts) -> None:
    expert_ids, down = block.args[1], block.args[4]
    assert isinstance(expert_ids, Node)
    assert isinstance(down, Node)
    ids = expert_ids.meta["val"]
    counter = counts.counter(parameter_path(down.meta["path"]), int(shape_of(down)[0]), ids.device)
    graph_module.register_buffer(attribute, counter, persistent=False)
    with graph_module.graph.inserting_before(block):
        buffer = graph_module.graph.get_attr(attribute)
        buffer.meta["val"] = ids.new_empty(counter.shape, dtype=counter.dtype)
        counted = graph_module.graph.call_function(
            torch.ops.coxmoe.count_choices_.default, (buffer, expert_ids)
        )
        counted.meta["val"] = None
