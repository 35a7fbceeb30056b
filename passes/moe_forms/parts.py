"""What every MoE form has in common: two contractions with expert weights, an activation
between."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Node

from coxcompile.passes.moe_forms.activation import MatchedActivation, match_activation
from coxcompile.passes.moe_forms.patterns import (
    aten,
    dtype_of,
    expect_call,
    expect_node,
    indexed_by,
    is_call,
    require,
    shape_of,
    strip_reshapes,
)


@dataclass(frozen=True)
class Contraction:
    """``inputs`` [S, in] times each slot's matrix; ``transposed``: the weight is [E, in, out]."""

    inputs: Node
    weight: Node
    transposed: bool


@dataclass(frozen=True)
class MoEParts:
    """The nodes of a matched block, before they are checked against each other's shapes."""

    hidden_states: Node
    expert_ids: Node
    routing_weights: Node
    gate_up: Contraction
    gate_up_bias: Node | None
    activation: MatchedActivation
    down: Contraction
    down_bias: Node | None
    output: Node
    top_k: int


@dataclass(frozen=True)
class ExpertFFN:
    """The part in slot order: from the slots' hidden states to the unweighted expert outputs."""

    slot_hidden_states: Node
    gate_up: Contraction
    gate_up_bias: Node | None
    activation: MatchedActivation
    down: Contraction
    down_bias: Node | None


def match_expert_ffn(
    outputs: object,
    slot_expert_ids: Node,
    match_contraction: Callable[[Node], Contraction],
    parameters: Mapping[Node, torch.Tensor],
) -> ExpertFFN:
    """Match back from the expert outputs [S, H], reshaped or not, to the slots' hidden states."""

    def match_projection(value: object) -> tuple[Contraction, Node | None]:
        node = strip_reshapes(value)
        bias = None
        if is_call(node, aten.add.Tensor):
            require(node.kwargs.get("alpha", 1) == 1, "the bias is added with a factor")
            node, biases = strip_reshapes(node.args[0]), node.args[1]
            bias, ids = indexed_by(biases, "what is added to the projection is no expert bias")
            require(ids is slot_expert_ids, "the bias is chosen by other ids than the weights")
            require(bias in parameters, "the expert bias is no parameter")
        contraction = match_contraction(node)
        require(
            contraction.weight in parameters and len(shape_of(contraction.weight)) == 3,
            "the expert weight is no parameter of rank 3",
        )
        return contraction, bias

    down, down_bias = match_projection(outputs)
    activation = match_activation(down.inputs)
    gate_up, gate_up_bias = match_projection(activation.source)
    return ExpertFFN(
        strip_reshapes(gate_up.inputs), gate_up, gate_up_bias, activation, down, down_bias
    )


def match_weighted_sum(sum_node: Node) -> tuple[Node, int]:
    """The [S, H] tensor whose top_k rows a token are summed, and top_k."""
    require(
        list(sum_node.args[1]) == [1] and len(sum_node.args) == 2 and not sum_node.kwargs,  # type: ignore[arg-type]
        "not a sum over dimension 1",
    )
    stacked = expect_call(
        sum_node.args[0], "what is summed is no [tokens, top_k, hidden] view", aten.view.default
    )
    require(len(shape_of(stacked)) == 3, "what is summed is no [tokens, top_k, hidden] view")
    slots = expect_node(stacked.args[0], "expected a tensor")
    require(len(shape_of(slots)) == 2, "what is summed is no view of [slots, hidden]")
    top_k = shape_of(stacked)[1]
    require(isinstance(top_k, int), "top_k is not known at compile time")
    return slots, int(top_k)


def split_routing_product(product: object) -> tuple[Node, Node]:
    """``expert_output * weight.unsqueeze(-1)``: (expert output, flat weight [S])."""
    node = expect_call(
        product, "the experts' outputs are not multiplied by weights", aten.mul.Tensor
    )
    first, second = (expect_node(a, "expected a tensor") for a in node.args[:2])
    if is_call(first, aten.unsqueeze.default) and shape_of(first)[-1:] == (1,):
        first, second = second, first
    weight = expect_call(
        second,
        "the experts' outputs are not multiplied by one weight a slot",
        aten.unsqueeze.default,
    )
    flat = expect_node(weight.args[0], "expected a tensor")
    require(
        len(shape_of(flat)) == 1 and weight.args[1] in (-1, 1),
        "the experts' outputs are not multiplied by one weight a slot",
    )
    return first, flat


def output_of(sum_node: Node, hidden_states: Node) -> Node:
    """The node that ends the block: the sum, or its cast back to hidden_states' dtype."""
    dtype = dtype_of(hidden_states)
    if dtype_of(sum_node) == dtype:
        return sum_node
    casts = [
        user
        for user in sum_node.users
        if is_call(user, aten._to_copy.default) and dtype_of(user) == dtype
    ]
    require(
        len(casts) == 1 and len(sum_node.users) == 1,
        f"the block's result is used as {dtype_of(sum_node)}, its hidden_states are {dtype}",
    )
    return casts[0]
