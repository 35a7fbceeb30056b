"""Sizes of one attention of a graph, as the cost model counts them. Imports torch."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch.fx import Node

from coxcompile.passes.moe_forms.patterns import is_call
from coxcompile.symbolic_sizes import optimization_hint

aten = torch.ops.aten

REMEDY = 'compile it with accelerator="none"'
_LAYOUTS = (
    *(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.clone.default),
    *(aten.transpose.int, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim),
    *(aten.expand.default, aten.contiguous.default, aten.alias.default, aten.repeat.default),
    aten.repeat_interleave.self_int,
)


@dataclass(frozen=True)
class AttentionSizes:
    """One layer's attention, before any repetition of KV heads.

    Attributes:
        head_dim: mean width of a head's keys and values.
        kv_elements: of keys and values together, for each position.
    """

    batch: int
    queries: int
    keys: int
    query_heads: int
    kv_heads: int
    head_dim: int
    kv_elements: int


def attention_sizes(products: list[Node]) -> AttentionSizes:
    """The sizes of the attention that consists of ``products``, in their order.

    Raises:
        ValueError: its operands are no [batch, heads, length, width].
    """
    query, key = cast(tuple[Node, Node], products[0].args[:2])
    whole = is_call(products[0], aten.scaled_dot_product_attention.default)
    value = cast(Node, products[0].args[2] if whole else products[-1].args[1])
    query = _before_grouping(query)
    if any(len(sizes_of(operand)) != 4 for operand in (query, key, value)):
        raise ValueError(
            f"{products[0].name} is no attention of [batch, heads, length, width]: {REMEDY}"
        )
    batch, query_heads, queries, width = sizes_of(query)
    keys = sizes_of(value)[2]
    return AttentionSizes(
        batch=batch,
        queries=queries,
        keys=keys,
        query_heads=query_heads,
        kv_heads=_distinct_elements(key) // (batch * keys * width),
        head_dim=(width + sizes_of(value)[3]) // 2,
        kv_elements=(_distinct_elements(key) + _distinct_elements(value)) // (batch * keys),
    )


def _before_grouping(query: Node) -> Node:
    """The [B, heads, 1, D] of which group_query_heads made [B, KV heads, group, D], if it did."""
    if is_call(query, aten.reshape.default):
        source = cast(Node, query.args[0])
        shape, grouped = sizes_of(source), sizes_of(query)
        if len(shape) == 4 and shape[2] == 1 and shape[1] == grouped[1] * grouped[2]:
            return source
    return query


def _distinct_elements(operand: Node) -> int:
    """Elements of keys or values before heads are repeated."""
    node, fewest = operand, elements_of(operand)
    while is_call(node, *_LAYOUTS):
        node = cast(Node, node.args[0])
        fewest = min(fewest, elements_of(node))
    return fewest


def sizes_of(node: Node) -> tuple[int, ...]:
    """The tensor's shape; symbolic sizes as they are in the example inputs."""
    return tuple(optimization_hint(size) for size in node.meta["val"].shape)


def elements_of(node: Node) -> int:
    """How many elements the tensor has."""
    return math.prod(sizes_of(node))
