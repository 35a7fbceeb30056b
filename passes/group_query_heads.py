"""Attention of one query over repeated KV heads → a group's query heads as rows, no repetition."""

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg

from coxcompile.passes.context import PassContext
from coxcompile.passes.moe_forms.patterns import (
    NoMatch,
    argument,
    expect_call,
    expect_node,
    is_call,
    require,
    shape_of,
    strip_reshapes,
)

aten = torch.ops.aten
Shape = tuple[int | torch.SymInt, ...]


def group_query_heads(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Rewrite ``scaled_dot_product_attention`` of query length 1 (decoding) over repeated KV heads.

    Matches keys and values expanded from [B, KV heads, 1, S, D] to [B, KV heads, group, S, D] and
    reshaped to [B, heads, S, D]. Writes the same attention of the query [B, KV heads, group, D] on
    what was expanded: query heads that share a KV head become rows of one product, and the cache
    is not copied ``group`` times. Must not fire where rows or heads have another meaning (longer or
    symbolic query lengths, causal, a mask for each head as in ALiBi), where something else than
    whole heads is repeated or in another order, with dropout, or in a graph without MoE blocks,
    which is Inductor's alone.
    """
    if not context.blocks:
        return graph_module
    for attention in graph_module.graph.find_nodes(
        op="call_function", target=aten.scaled_dot_product_attention.default
    ):
        try:
            _group(graph_module.graph, attention)
        except NoMatch:
            continue
    graph_module.graph.eliminate_dead_code()
    return graph_module


def _group(graph: Graph, attention: Node) -> None:
    query, key, value = (
        expect_node(argument(attention, position, name), f"{name} is no tensor")
        for position, name in enumerate(("query", "key", "value"))
    )
    mask = _mask_for_any_heads(argument(attention, 3, "attn_mask"))
    require(
        argument(attention, 4, "dropout_p", 0.0) == 0.0
        and not argument(attention, 5, "is_causal", False)
        and not attention.kwargs.get("enable_gqa", False),
        "dropout, causal, or grouped already",
    )
    keys, values = _before_repetition(key), _before_repetition(value)
    batch, heads, _, _, width = shape_of(keys)
    query_heads, value_width = shape_of(key)[1], shape_of(value)[-1]
    require(
        isinstance(heads, int)
        and isinstance(query_heads, int)
        and query_heads > heads
        and _same(shape_of(query), (batch, query_heads, 1, width))
        and _same(shape_of(values)[:2], (batch, heads)),
        "query, keys and values do not belong together",
    )
    with graph.inserting_before(attention):
        rows = [-1, heads, query_heads // heads, width]
        query, keys, values = (
            _call(graph, aten.reshape.default, query, rows),
            _call(graph, aten.squeeze.dim, keys, 2),
            _call(graph, aten.squeeze.dim, values, 2),
        )
        scale = attention.kwargs.get("scale")
        grouped = _call(graph, attention.target, query, keys, values, mask, scale=scale)
        output = _call(graph, aten.reshape.default, grouped, [-1, query_heads, 1, value_width])
    output.meta = {**attention.meta, **output.meta}
    attention.replace_all_uses_with(output)
    # Dead code elimination keeps whatever may draw random numbers, such as attention with dropout.
    graph.erase_node(attention)


def _before_repetition(repeated: Node) -> Node:
    """The [B, KV heads, 1, S, D] tensor of which ``repeated`` [B, heads, S, D] repeats each head.

    Reshapes and clones keep the order of the elements: with B, S and D the same on both sides, KV
    heads and group can only have been flattened into heads.
    """
    node = strip_reshapes(repeated)
    while is_call(node, aten.clone.default):
        node = strip_reshapes(node.args[0])
    expanded = shape_of(expect_call(node, "heads are not repeated", aten.expand.default))
    source = expect_node(node.args[0], "expected a tensor")
    require(len(expanded) == 5, "what is repeated are not heads")
    batch, heads, group, length, width = expanded
    require(
        isinstance(width, int)
        and _same(shape_of(source), (batch, heads, 1, length, width))
        and _same(shape_of(repeated), (batch, heads * group, length, width)),
        "something else than whole heads is repeated",
    )
    return source


def _mask_for_any_heads(mask: object) -> Node | None:
    """The mask, if it is the same for every head, in a shape that broadcasts to any number."""
    if mask is None:
        return None
    node = expect_node(mask, "the mask is no tensor")
    if is_call(node, aten.expand.default) and not _is_for_any_heads(node):
        node = expect_node(node.args[0], "the mask is no tensor")
    require(_is_for_any_heads(node), "the mask may differ between heads")
    return node


def _is_for_any_heads(mask: Node) -> bool:
    shape = shape_of(mask)
    return len(shape) in (2, 4) and all(statically_known_true(size == 1) for size in shape[-3:-1])


def _same(shape: Shape, other: Shape) -> bool:
    """Whether two shapes are equal for certain; asking puts no guard on symbolic sizes."""
    return len(shape) == len(other) and all(
        statically_known_true(size == other_size)
        for size, other_size in zip(shape, other, strict=True)
    )


def _call(graph: Graph, target: Any, *args: Any, **kwargs: Any) -> Node:
    node = graph.call_function(target, args, kwargs)
    fake_args, fake_kwargs = map_arg((args, kwargs), lambda argument: argument.meta["val"])
    with fake_args[0].fake_mode:
        node.meta["val"] = target(*fake_args, **fake_kwargs)
    return node
