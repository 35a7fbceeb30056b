"""A model's spec and its workload from a graph whose layers are found."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from coxcompile.planner.attention_sizes import REMEDY
from coxcompile.planner.layer_sizes import layer_sizes, vocabulary_of
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Stage
from coxcompile.planner.workload import Workload, uniform_workload

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from coxcompile.passes import MoEBlock


def model_from_graph(
    graph_module: "GraphModule", blocks: Sequence["MoEBlock"], name: str = "model"
) -> ModelSpec:
    """The spec of the model that a graph computes, after find_layers.

    It counts what the graph multiplies by. ``qkv_elements`` are the weights up to attention (also a
    projection of the whole cache, DeepSeek's kv_b), ``output_elements`` those of the first products
    after it. ``kv_elements`` is a token's share of the caches among the inputs; without a cache, of
    the keys and values that enter attention. Each is None where it is :class:`ModelSpec`'s default.
    ``shared_dim`` and ``dense_dim`` are the other weights of a layer's "output", the router's
    aside, over 3·h, rounded: a small gate of the shared experts does not show. ``head_dim`` is the
    mean width of keys and values. ``vocabulary`` is 1 in a graph without head.

    Args:
        graph_module: annotated by find_layers.
        blocks: the MoE blocks found in it.
        name: as reports show it.

    Raises:
        ValueError: the graph has no MoE block or no attention, or its layers differ in what a
            ModelSpec has one size for; the message names it.
    """
    if not blocks:
        raise ValueError(f"the graph has no MoE block: {REMEDY}")
    hidden = _one_of("hidden", (block.hidden for block in blocks))
    layers = layer_sizes(graph_module)
    moe = [layer for layer in layers if layer.has_experts]
    dense = [layer for layer in layers if not layer.has_experts]
    query_heads = _one_of("query_heads", (layer.attention.query_heads for layer in layers))
    kv_heads = _one_of("kv_heads", (layer.attention.kv_heads for layer in layers))
    head_dim = _one_of("head_dim", (layer.attention.head_dim for layer in layers))
    qkv = _one_of("qkv_elements", (layer.qkv_elements for layer in layers))
    output = _one_of("output_elements", (layer.output_elements for layer in layers))
    cached = _one_of("kv_elements", (layer.kv_elements for layer in layers))
    vocabulary, tied = vocabulary_of(graph_module, hidden)
    return ModelSpec(
        name=name,
        layers=len(layers),
        dense_layers=len(dense),
        hidden=hidden,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        experts=_one_of("experts", (block.experts for block in blocks)),
        top_k=_one_of("top_k", (block.top_k for block in blocks)),
        expert_dim=_one_of("expert_dim", (block.intermediate for block in blocks)),
        shared_dim=_one_of("shared_dim", (layer.ffn_dim(hidden) for layer in moe)),
        dense_dim=_one_of("dense_dim", (layer.ffn_dim(hidden) for layer in dense)) if dense else 0,
        vocabulary=vocabulary,
        tied_embeddings=tied,
        element_bytes=_one_of("element_bytes", (block.dtype.itemsize for block in blocks)),
        qkv_elements=None if qkv == hidden * (query_heads + 2 * kv_heads) * head_dim else qkv,
        output_elements=None if output == query_heads * head_dim * hidden else output,
        kv_elements=None if cached == 2 * kv_heads * head_dim else cached,
    )


def workload_from_graph(graph_module: "GraphModule") -> tuple[Stage, Workload]:
    """What one call of the graph does, after find_layers: the stage, and a batch of its lengths.

    One query a sequence over more keys than one is "decode": of the length L of the cache, a prompt
    of L - 1 tokens and 2 new ones, whose single decoding step reads L positions a sequence. Else it
    is "prefill": the prompt is as long as the queries, and the rest of the cache, 1 without, is to
    be generated. L is that of the longest of the layers' caches. Symbolic sizes count as they are
    in the example inputs.

    Raises:
        ValueError: the graph has no attention.
    """
    attentions = [layer.attention for layer in layer_sizes(graph_module)]
    batch, queries = attentions[0].batch, attentions[0].queries
    longest = max(attention.keys for attention in attentions)
    if queries == 1 and longest > 1:
        return "decode", uniform_workload(batch, longest - 1, 2)
    return "prefill", uniform_workload(batch, queries, max(1, longest - queries))


def _one_of(name: str, values: Iterable[int]) -> int:
    found = sorted(set(values))
    if len(found) > 1:
        raise ValueError(
            f"{name} is {', '.join(map(str, found))} in different layers of the graph, and a "
            f"ModelSpec has one for all: {REMEDY}"
        )
    return found[0]
