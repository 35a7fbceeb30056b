"""transformers' ``batched_mm`` experts: each slot gathers its expert's matrix."""

from collections.abc import Mapping

import torch
from torch.fx import Node

from coxcompile.passes.moe_forms.parts import (
    Contraction,
    MoEParts,
    match_expert_ffn,
    match_weighted_sum,
    output_of,
    split_routing_product,
)
from coxcompile.passes.moe_forms.patterns import (
    aten,
    constant,
    expect_call,
    expect_node,
    flattened_source,
    indexed_by,
    is_call,
    require,
    shape_of,
    strip_reshapes,
)


def match_batched_mm(sum_node: Node, parameters: Mapping[Node, torch.Tensor]) -> MoEParts:
    """Match ``repeat → W[ids] → bmm → act → W[ids] → bmm → · weight → sum``.

    Must not match when the two projections gather by different ids, when ids are clamped or masked
    in between (expert parallelism), or when a norm follows the experts.
    """
    weighted, top_k = match_weighted_sum(sum_node)
    outputs, flat_weights = split_routing_product(weighted)
    routing_weights = flattened_source(
        flat_weights, top_k, "routing weights are not [tokens, top_k]"
    )
    gathered_by: list[Node] = []

    def match_contraction(node: Node) -> Contraction:
        product = expect_call(node, "not a batched product", aten.bmm.default)
        first, second = (expect_node(a, "expected a tensor") for a in product.args[:2])
        transposed = not is_call(first, aten.index.Tensor)
        matrices, vectors = (second, first) if transposed else (first, second)
        weight, ids = indexed_by(matrices, "the expert matrices are not gathered by expert id")
        gathered_by.append(ids)
        vector_dimension = 1 if transposed else 2
        require(shape_of(vectors)[vector_dimension] == 1, "a slot multiplies more than one token")
        return Contraction(vectors, weight, transposed)

    flat_ids = _gather_ids(outputs)
    ffn = match_expert_ffn(outputs, flat_ids, match_contraction, parameters)
    require(
        all(ids is flat_ids for ids in gathered_by), "the two projections gather by different ids"
    )
    expert_ids = flattened_source(flat_ids, top_k, "expert ids are not [tokens, top_k]")
    repeated = expect_call(
        ffn.slot_hidden_states,
        "the experts' inputs are not each token repeated top_k times",
        aten.repeat_interleave.self_int,
    )
    require(
        constant(repeated.args[1]) == top_k and repeated.args[2:] == (0,) and not repeated.kwargs,
        "the experts' inputs are not each token repeated top_k times",
    )
    hidden_states = expect_node(repeated.args[0], "expected a tensor")
    return MoEParts(
        hidden_states,
        expert_ids,
        routing_weights,
        ffn.gate_up,
        ffn.gate_up_bias,
        ffn.activation,
        ffn.down,
        ffn.down_bias,
        output_of(sum_node, hidden_states),
        top_k,
    )


def _gather_ids(outputs: Node) -> Node:
    """The flat expert ids that the last projection gathers its matrices by."""
    node = strip_reshapes(outputs)
    if is_call(node, aten.add.Tensor):
        node = strip_reshapes(node.args[0])
    product = expect_call(node, "not a batched product", aten.bmm.default)
    for operand in product.args[:2]:
        if is_call(operand, aten.index.Tensor):
            return indexed_by(operand, "the expert matrices are not gathered by expert id")[1]
    return expect_node(None, "the expert matrices are not gathered by expert id")
