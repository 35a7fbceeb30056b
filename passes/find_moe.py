"""Finds the MoE blocks of a normalized graph; changes nothing."""

from collections.abc import Mapping

import torch
from torch.fx import GraphModule, Node

from coxcompile.passes.context import (
    MoEBlock,
    PassContext,
    SkippedBlock,
    parameter_path,
    parameters_of,
)
from coxcompile.passes.moe_forms import FORMS
from coxcompile.passes.moe_forms.parts import MoEParts
from coxcompile.passes.moe_forms.patterns import (
    NoMatch,
    aten,
    dtype_of,
    is_call,
    require,
    shape_of,
    strip_reshapes,
)

_SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def find_moe(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Record every MoE block in ``context.blocks``, everything that resembles one in ``.skipped``.

    A block ends in a sum over each token's experts, so every such sum is offered to each form. What
    resembles a block is a product with a weight of rank 3 that is a parameter: if no block took it,
    it is reported with the reason of the form that uses such products, and left alone.
    """
    parameters = parameters_of(graph_module, context)
    reasons: dict[Node, str] = {}
    taken: set[Node] = set()
    for sum_node in graph_module.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList):
        for form in FORMS:
            try:
                block = _checked_block(form.name, form.match(sum_node, parameters))
            except NoMatch as mismatch:
                for product in _expert_products(sum_node, parameters):
                    if str(product.target) in form.products:
                        reasons[product] = f"{form.name}: {mismatch}"
            else:
                context.blocks.append(block)
                taken |= {block.gate_up, block.down}
                break
    for node in graph_module.graph.nodes:
        weight = _expert_weight(node, parameters)
        if weight is not None and weight not in taken:
            taken.add(weight)
            reason = reasons.get(node, "no weighted sum over each token's experts follows it")
            path = parameter_path(weight.meta["path"])
            context.skipped.append(SkippedBlock(path, node.name, reason))
    return graph_module


def _checked_block(form: str, parts: MoEParts) -> MoEBlock:
    experts = shape_of(parts.down.weight)[0]
    hidden = shape_of(parts.hidden_states)[-1]
    transposed = parts.down.transposed
    intermediate = shape_of(parts.down.weight)[1 if transposed else 2]
    require(parts.gate_up.transposed == transposed, "the two weights have different layouts")
    gate_up_shape = (hidden, 2 * intermediate) if transposed else (2 * intermediate, hidden)
    down_shape = (intermediate, hidden) if transposed else (hidden, intermediate)
    require(
        shape_of(parts.gate_up.weight) == (experts, *gate_up_shape)
        and shape_of(parts.down.weight) == (experts, *down_shape),
        "the weights' shapes do not belong together",
    )
    require(
        len(shape_of(parts.hidden_states)) == 2
        and shape_of(parts.expert_ids)[0] == shape_of(parts.hidden_states)[0]
        and shape_of(parts.routing_weights) == shape_of(parts.expert_ids),
        "hidden_states, expert ids and routing weights differ in their number of tokens",
    )
    dtype = dtype_of(parts.hidden_states)
    tensors = [parts.gate_up.weight, parts.down.weight, parts.gate_up_bias, parts.down_bias]
    require(
        dtype in _SUPPORTED_DTYPES and all(t is None or dtype_of(t) == dtype for t in tensors),
        f"weights and hidden_states are not all of one supported dtype (hidden_states: {dtype})",
    )
    require(
        all(t is None or t.meta["val"].is_contiguous() for t in tensors),
        "an expert weight is not contiguous",
    )
    return MoEBlock(
        path=parameter_path(parts.down.weight.meta["path"]),
        form=form,
        experts=int(experts),
        top_k=parts.top_k,
        hidden=int(hidden),
        intermediate=int(intermediate),
        dtype=dtype,
        activation=parts.activation.name,
        gate_layout=parts.activation.gate_layout,
        transposed=transposed,
        alpha=parts.activation.alpha,
        limit=parts.activation.limit,
        hidden_states=parts.hidden_states,
        expert_ids=parts.expert_ids,
        routing_weights=parts.routing_weights,
        gate_up=parts.gate_up.weight,
        down=parts.down.weight,
        gate_up_bias=parts.gate_up_bias,
        down_bias=parts.down_bias,
        output=parts.output,
    )


def _expert_weight(node: Node, parameters: Mapping[Node, torch.Tensor]) -> Node | None:
    """The rank-3 parameter that ``node`` multiplies by, if it is a product with one."""
    if node.op != "call_function" or "mm" not in str(node.target):
        return None
    for operand in node.all_input_nodes:
        source = operand
        while is_call(source, aten.transpose.int, aten.index.Tensor, aten.view.default):
            source = source.all_input_nodes[0]
        if source in parameters and len(shape_of(source)) == 3:
            return source
    return None


def _expert_products(sum_node: Node, parameters: Mapping[Node, torch.Tensor]) -> list[Node]:
    """Products with expert weights among the few nodes before ``sum_node``."""
    found, frontier = [], [strip_reshapes(sum_node.args[0])]
    for _ in range(12):
        frontier = [source for node in frontier for source in node.all_input_nodes]
        found += [node for node in frontier if _expert_weight(node, parameters) is not None]
    return found
