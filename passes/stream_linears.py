"""Linears of few tokens → ``coxmoe::streamed_linear``, which reads the weight where it lies."""

from collections.abc import Mapping

import torch
from torch.fx import GraphModule, Node

import coxcompile.ops  # noqa: F401  (defines the op)
from coxcompile.passes.context import PassContext, parameters_of
from coxcompile.passes.moe_forms.patterns import shape_of

aten = torch.ops.aten

MOST_TOKENS = 16
SMALLEST_WEIGHT_BYTES = 1 << 16


def stream_linears(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Rewrite bfloat16 linears of at most 16 tokens whose weight is a parameter of 64 KiB or more.

    With so few tokens a linear is bound by reading its weight, and oneDNN reorders an unpacked
    weight on every call. Must not fire where the number of tokens is symbolic, where oneDNN does as
    well (many tokens; tiny weights), on a processor without bfloat16 products, or
    in a graph without MoE blocks, which is Inductor's alone.
    """
    if not context.blocks or not torch.cpu._is_avx512_bf16_supported():
        return graph_module
    stream_linears_of(graph_module, parameters_of(graph_module, context))
    return graph_module


def stream_linears_of(graph_module: GraphModule, weights: Mapping[Node, torch.Tensor]) -> None:
    """The same for the linears by these ``weights`` (placeholders, with what each stands for)."""
    for node in graph_module.graph.find_nodes(op="call_function", target=aten.linear.default):
        weight = node.args[1]
        if weight in weights and _is_streamed(node, weights[weight]):
            node.target = torch.ops.coxmoe.streamed_linear.default


def _is_streamed(linear: Node, weight: torch.Tensor) -> bool:
    tokens = 1
    for size in shape_of(linear)[:-1]:
        if not isinstance(size, int):
            return False
        tokens *= size
    return (
        tokens <= MOST_TOKENS
        and weight.dtype == torch.bfloat16
        and weight.nbytes >= SMALLEST_WEIGHT_BYTES
        and weight.is_contiguous()
    )
