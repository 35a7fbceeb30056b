"""Sizes of each layer of a graph whose layers are found, in what the cost model counts.

Reads graphs, so it imports torch, which the planner's other files do without.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch.fx import GraphModule, Node

from coxcompile.passes.moe_forms.patterns import is_call
from coxcompile.passes.products import multiplies_activations, weight_of
from coxcompile.planner.attention_sizes import (
    REMEDY,
    AttentionSizes,
    attention_sizes,
    elements_of,
    sizes_of,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class LayerSizes:
    """One layer; numbers of elements, of weights unless a name says otherwise.

    Attributes:
        has_experts: whether the layer has an MoE block.
        qkv_elements: what leads to attention is multiplied by.
        output_elements: of the first products after attention.
        kv_elements: cached for each position, or without a cache attention's own.
        other_elements: of the layer's other products, the router and experts aside.
    """

    attention: AttentionSizes
    has_experts: bool
    qkv_elements: int
    output_elements: int
    kv_elements: int
    other_elements: int

    def ffn_dim(self, hidden: int) -> int:
        """Width of a gated FFN of as many weights as the layer's shared experts or dense FFN."""
        return round(self.other_elements / (3 * hidden))


def layer_sizes(graph_module: GraphModule) -> list[LayerSizes]:
    """All layers that find_layers found, in order. Symbolic sizes count as in the example inputs.

    Raises:
        ValueError: a layer has no attention of [batch, heads, length, width].
    """
    layers: dict[int, list[Node]] = {}
    for node in graph_module.graph.nodes:
        if "layer" in node.meta:
            layers.setdefault(node.meta["layer"], []).append(node)
    if not layers:
        raise ValueError(f"find_layers found no layers in the graph: {REMEDY}")
    return [_sizes(layers[number], number) for number in sorted(layers)]


def vocabulary_of(graph_module: GraphModule, hidden: int) -> tuple[int, bool]:
    """Rows of the output head, 1 without one; and whether it is an embedding's table."""
    graph = graph_module.graph
    heads = [weight_of(node) for node in _of(graph.nodes, "head")]
    weights = [weight for weight in heads if weight is not None]
    if not weights:
        return 1, False
    head = max(weights, key=elements_of)
    embeddings = graph.find_nodes(op="call_function", target=aten.embedding.default)
    return elements_of(head) // hidden, any(node.args[0] is head for node in embeddings)


def _sizes(nodes: list[Node], number: int) -> LayerSizes:
    products = [node for node in _of(nodes, "attention") if multiplies_activations(node)]
    if not products:
        raise ValueError(f"layer {number} of the graph has no attention: {REMEDY}")
    attention = attention_sizes(products)
    output, experts = _of(nodes, "output"), _of(nodes, "experts")
    projection = _first_products([products[-1]], lambda node: node.users, output)
    routing = [cast(Node, argument) for block in experts for argument in block.args[1:3]]
    router = _first_products(routing, lambda node: node.all_input_nodes, output)
    return LayerSizes(
        attention=attention,
        has_experts=bool(experts),
        qkv_elements=_weights([*_of(nodes, "qkv"), *_of(nodes, "attention")]),
        output_elements=_weights(projection),
        kv_elements=_cached_elements(nodes) or attention.kv_elements,
        other_elements=_weights(n for n in output if n not in projection and n not in router),
    )


def _first_products(
    starts: Iterable[Node], following: Callable[[Node], Iterable[Node]], region: Collection[Node]
) -> list[Node]:
    """The products with weights that are reached first, within ``region``."""
    found: list[Node] = []
    seen: set[Node] = set(starts)
    stack = list(seen)
    while stack:
        node = stack.pop()
        if node in region and weight_of(node) is not None:
            found.append(node)
            continue
        more = [n for n in following(node) if n in region and n not in seen]
        seen.update(more)
        stack.extend(more)
    return found


def _cached_elements(nodes: list[Node]) -> int:
    """Elements for each position of the caches [B, heads, length, width] that the layer reads.

    Those are inputs that are written back, or that new keys and values are appended to.
    """
    caches = {cast(Node, node.args[0]) for node in nodes if is_call(node, aten.copy_.default)}
    for node in _of(nodes, "attention"):
        if is_call(node, aten.cat.default):
            caches |= {source for source in node.all_input_nodes if source.op == "placeholder"}
    return sum(elements_of(cache) // (sizes_of(cache)[0] * sizes_of(cache)[-2]) for cache in caches)


def _weights(nodes: Iterable[Node]) -> int:
    weights = (weight_of(node) for node in nodes)
    return sum(elements_of(weight) for weight in weights if weight is not None)


def _of(nodes: Iterable[Node], operation: str) -> list[Node]:
    return [node for node in nodes if node.meta.get("operation") == operation]
