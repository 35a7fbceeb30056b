"""Seconds that a described machine would take for a node: what the emulated one is slowed to.

The same rooflines as the planner's (paper §4.1), fed with what the compiled graph really holds:
sizes of each product, and the tokens that each expert really got. Operators that are no product
count nothing, as in the plan: compiled, they are fused with those.
"""

import math

import torch
from torch.fx import Graph, Node

from coxcompile.hardware import Processor
from coxcompile.runtime.buffers import bytes_of
from coxcompile.runtime.expert_layer import ExpertLayer

aten = torch.ops.aten
_LINEARS = (aten.linear.default, torch.ops.coxmoe.streamed_linear.default)
_MATMULS = (aten.matmul.default, aten.bmm.default, aten.mm.default)


def partition_seconds(graph: Graph, unit: Processor) -> float:
    """A roofline for each product in a partition, a launch for each of OP0-OP2 and the head."""
    seconds = {node: _operator_seconds(node, unit) for node in graph.nodes}
    started = {
        (node.meta.get("layer"), node.meta.get("operation"))
        for node, taken in seconds.items()
        if taken and node.target is not torch.ops.coxmoe.coalesced_experts.default
    }
    return sum(seconds.values()) + len(started) * unit.launch_seconds


def _operator_seconds(node: Node, unit: Processor) -> float:
    if node.target in _LINEARS:
        source, weight = (argument.meta["val"] for argument in _nodes(node)[:2])
        rows = source.numel() // source.shape[-1]
        read = bytes_of(weight) + bytes_of(source)
        seconds = unit.gemm_seconds(2.0 * rows * weight.numel(), read, max(rows, 1))
        return float(seconds)
    if node.target is aten.scaled_dot_product_attention.default:
        query, key, value = (argument.meta["val"] for argument in _nodes(node)[:3])
        causal = 2 if len(node.args) > 5 and node.args[5] else 1
        pairs = query.numel() // query.shape[-1] * key.shape[-2] / causal
        flops = 2.0 * pairs * (query.shape[-1] + value.shape[-1])
        read = sum(map(_distinct_bytes, _nodes(node)[:3]))
        heads = math.prod(key.shape[:-2]) if query.shape[-2] < key.shape[-2] else 0
        return _attention(flops, read, unit) + heads * unit.attention_head_seconds
    if node.target in _MATMULS:
        first, second = (argument.meta["val"] for argument in _nodes(node)[:2])
        flops = 2.0 * first.numel() * second.shape[-1]
        read = sum(map(_distinct_bytes, _nodes(node)[:2]))
        return _attention(flops, read, unit)
    if node.target is torch.ops.coxmoe.coalesced_experts.default:
        return _uniform_experts_seconds(node, unit)
    return 0.0


def _nodes(node: Node) -> list[Node]:
    """The positional arguments that are nodes."""
    return [argument for argument in node.args if isinstance(argument, Node)]


def _attention(flops: float, bytes_read: float, unit: Processor) -> float:
    compute = flops / (unit.flops_per_second * unit.attention_efficiency)
    return max(compute, unit.read_seconds(bytes_read))


def _distinct_bytes(node: Node) -> int:
    """Bytes of what repeated heads are repeated from: kernels need not read them more than once."""
    least = bytes_of(node.meta["val"])
    while node.op == "call_function" and node.target in _REPETITIONS:
        node = node.args[0]  # type: ignore[assignment]
        least = min(least, bytes_of(node.meta["val"]))
    return least


_REPETITIONS = (
    *(aten.expand.default, aten.clone.default, aten._unsafe_view.default, aten.view.default),
    *(aten.reshape.default, aten.transpose.int, aten.unsqueeze.default),
)


def _uniform_experts_seconds(node: Node, unit: Processor) -> float:
    """All experts of a layer on one device: taken to be chosen alike."""
    hidden_states, expert_ids = (argument.meta["val"] for argument in _nodes(node)[:2])
    weights = [w.meta["val"] for w in node.args[3:7] if isinstance(w, Node)]
    experts = weights[0].shape[0]
    choices = expert_ids.numel()
    active = experts * (1 - (1 - 1 / experts) ** choices)
    counts = torch.full((max(round(active), 1),), choices / max(round(active), 1))
    return experts_seconds(counts, hidden_states, sum(map(bytes_of, weights)) / experts, unit)


def experts_seconds(
    counts: torch.Tensor, hidden_states: torch.Tensor, expert_bytes: float, unit: Processor
) -> float:
    """Of experts that got ``counts`` tokens each (paper §4.1, OP3); none for those without any."""
    rows = counts[counts > 0].double().numpy()
    if not len(rows):
        return 0.0
    elements = expert_bytes / hidden_states.element_size()
    width = hidden_states.shape[-1] * hidden_states.element_size()
    seconds = unit.gemm_seconds(2 * rows * elements, expert_bytes + 2 * rows * width, rows)
    return float(seconds.sum()) + 2 * unit.launch_seconds


def chosen_experts_seconds(
    expert_ids: torch.Tensor,
    expert_slots: torch.Tensor,
    hidden_states: torch.Tensor,
    layer: ExpertLayer,
    unit: Processor,
) -> float:
    """Of the experts of one table, for the tokens that chose them."""
    counts = torch.bincount(expert_ids.reshape(-1), minlength=layer.experts)
    return experts_seconds(counts[expert_slots >= 0], hidden_states, layer.expert_bytes, unit)
