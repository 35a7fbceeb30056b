"""transformers' ``grouped_mm`` experts: slots sorted by expert, a grouped product a projection."""

import operator
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
    NoMatch,
    aten,
    constant,
    expect_call,
    expect_node,
    flattened_source,
    indexed_by,
    is_call,
    require,
    shape_of,
)


def match_grouped_mm(sum_node: Node, parameters: Mapping[Node, torch.Tensor]) -> MoEParts:
    """Match ``sort → index → _grouped_mm → act → _grouped_mm → · weight → unsort → sum``.

    Must not match when any of these holds, because the rewrite would then change the result: the
    two products use different offsets, the offsets are not the counts of the sorted ids over all
    experts, slots are put back by another permutation than they were sorted by, ids are clamped or
    masked in between (expert parallelism), or a norm follows the experts.
    """
    unsorted, top_k = match_weighted_sum(sum_node)
    weighted, inverse = indexed_by(unsorted, "slots are not put back in the tokens' order")
    permutation = _inverted(inverse)
    outputs, sorted_weights = split_routing_product(weighted)

    sort = expect_call(permutation.args[0], "slots are not sorted by expert", aten.sort.default)
    require(len(sort.args) == 1 and not sort.kwargs, "slots are sorted otherwise than ascending")
    expert_ids = flattened_source(sort.args[0], top_k, "expert ids are not [tokens, top_k]")
    flat_weights, weights_order = indexed_by(
        sorted_weights, "routing weights are not sorted with the slots"
    )
    require(weights_order is permutation, "routing weights are sorted otherwise than the slots")
    routing_weights = flattened_source(
        flat_weights, top_k, "routing weights are not [tokens, top_k]"
    )
    sorted_ids = next((user for user in sort.users if user.args[1] == 0), None)
    if sorted_ids is None:
        raise NoMatch("the sorted expert ids are not used")

    offsets: list[Node] = []

    def match_contraction(node: Node) -> Contraction:
        targets: list[object] = [aten._grouped_mm.default]
        if hasattr(torch.ops.transformers, "grouped_mm_fallback"):
            targets.append(torch.ops.transformers.grouped_mm_fallback.default)
        product = expect_call(node, "not a grouped product", *targets)
        inputs, weight, ends = (expect_node(a, "expected a tensor") for a in product.args[:3])
        require(len(product.args) == 3 and not product.kwargs, "the grouped product has options")
        offsets.append(ends)
        if is_call(weight, aten.transpose.int):
            dimensions = {dimension % 3 for dimension in weight.args[1:]}  # type: ignore[operator]
            require(dimensions == {1, 2}, "the expert dimension of the weight is transposed")
            return Contraction(inputs, expect_node(weight.args[0], "expected a tensor"), False)
        return Contraction(inputs, weight, True)

    ffn = match_expert_ffn(outputs, sorted_ids, match_contraction, parameters)
    require(offsets[0] is offsets[1], "the two grouped products use different offsets")
    _check_offsets(offsets[0], sorted_ids, shape_of(ffn.down.weight)[0])

    hidden_states, token_of_slot = indexed_by(
        ffn.slot_hidden_states, "the experts' inputs are not rows of hidden_states"
    )
    division = expect_call(
        token_of_slot, "slots are not mapped to tokens", aten.floor_divide.default
    )
    require(
        division.args[0] is permutation and constant(division.args[1]) == top_k,
        "slots are not mapped to tokens by slot // top_k",
    )
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


def _inverted(inverse: Node) -> Node:
    """The permutation whose inverse is built as ``empty.index_put([permutation], arange(n))``."""
    reason = "slots are not put back by the inverse of the sorting permutation"
    put = expect_call(inverse, reason, aten.index_put.default)
    require(len(put.args) == 3 and not put.kwargs, reason)
    expect_call(put.args[0], reason, aten.empty_like.default)
    indices = put.args[1]
    require(isinstance(indices, list | tuple) and len(indices) == 1, reason)
    permutation = expect_call(indices[0], reason, operator.getitem)  # type: ignore[index]
    require(permutation.args[1] == 1, reason)
    positions = expect_call(put.args[2], reason, aten.arange.default)
    require(len(positions.args) == 1 and shape_of(positions) == shape_of(permutation), reason)
    return permutation


def _check_offsets(offsets: Node, sorted_ids: Node, experts: int | torch.SymInt) -> None:
    reason = "the group offsets are not the running counts of the sorted expert ids"
    running = expect_call(offsets, reason, aten.cumsum.default)
    require(running.args[1] in (0, -1), reason)
    histogram = expect_call(running.args[0], reason, aten.histc.default)
    require(tuple(histogram.args[1:]) == (experts, 0, experts - 1), reason)
    counted = expect_node(histogram.args[0], reason)
    if is_call(counted, aten._to_copy.default):
        counted = expect_node(counted.args[0], reason)
    require(counted is sorted_ids, reason)
