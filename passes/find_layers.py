"""Which node belongs to which layer's OP0-OP3 (paper §4.1), by the graph's structure alone."""

from collections.abc import Collection, Iterable
from itertools import pairwise

import torch
from torch.fx import GraphModule, Node

from coxcompile.passes.context import PassContext
from coxcompile.passes.hidden_path import HiddenPath
from coxcompile.passes.moe_forms.patterns import is_call, shape_of
from coxcompile.passes.products import is_float

aten = torch.ops.aten

Label = tuple[str, int | None]


def find_layers(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Write ``meta["operation"]`` and ``meta["layer"]`` on what depends on the hidden states.

    Layers are numbered by their attention, in order: a ``scaled_dot_product_attention``, or
    products of two activations that depend on each other without a linear in between. The layer's
    residual stream is what dominates both its attention and the first value that bypasses it.

    - "qkv": from the residual stream to the attention, the layer's input norm included; in layer 0
      also what comes before it.
    - "attention": the products, what lies between them, and all between a cache and them: its
      update, repeated heads, and a projection of the whole cache (DeepSeek's kv_b over a cache;
      without one it is "qkv").
    - "experts": ``coxmoe.coalesced_experts``.
    - "output": everything else up to the residual stream of the next layer.
    - "head": after the last addition of two hidden states on the way to the output, if that comes
      after the last attention; no "layer".

    What no later layer reads (outputs, write-backs of caches) goes with what it reads. Without any
    attention, layers are numbered by their experts and all else is "output". Nothing else changes.
    Must not fire where no hidden states are found, or where layers do not follow one another, each
    with a residual stream of its own: it then leaves a sentence in ``context.notes``.
    """
    path = HiddenPath(graph_module, context)
    cores = path.attention_cores()
    units = cores or [[node] for node in path.nodes if is_experts(node)]
    if reason := _misunderstood(path, units):
        context.notes.append(f"find_layers: {reason}")
        return graph_module
    labels = _label_layers(graph_module, path, units, has_attention=bool(cores))
    for node, (operation, layer) in labels.of.items():
        node.meta["operation"] = "experts" if is_experts(node) else operation
        if layer is not None:
            node.meta["layer"] = layer
    calls = [node for node in path.nodes if node.op == "call_function"]
    if unlabelled := [node.name for node in calls if node not in labels.of]:
        context.notes.append(f"find_layers: {', '.join(unlabelled)} belong to no layer")
    return graph_module


def is_experts(node: Node) -> bool:
    """Whether ``node`` is a coalesced MoE block."""
    return is_call(node, torch.ops.coxmoe.coalesced_experts.default)


class _Labels:
    """Labels of the nodes of ``region``; the first that is given to a node stays."""

    def __init__(self, region: Collection[Node]) -> None:
        self.of: dict[Node, Label] = {}
        self._region = region

    def write(self, nodes: Iterable[Node], label: Label) -> None:
        for node in nodes:
            if node.op == "call_function":
                self.of.setdefault(node, label)

    def before(self, ends: Iterable[Node | None]) -> dict[Node, None]:
        """``ends`` and what leads to them, up to what has a label."""
        found: dict[Node, None] = {}
        stack = [end for end in ends if end is not None]
        while stack:
            node = stack.pop()
            if node in self._region and node not in self.of and node not in found:
                found[node] = None
                stack.extend(node.all_input_nodes)
        return found

    def spread(self, nodes: Iterable[Node]) -> None:
        """Every node without a label gets that of its inputs of the latest layer."""
        for node in nodes:
            inputs = [self.of[source] for source in node.all_input_nodes if source in self.of]
            if inputs:
                self.write([node], max(inputs, key=_depth))


def _depth(label: Label) -> float:
    return float("inf") if label[1] is None else label[1]


def _label_layers(
    graph_module: GraphModule, path: HiddenPath, units: list[list[Node]], *, has_attention: bool
) -> _Labels:
    ends = [unit[-1] for unit in units]
    cached = _read_from_cache(graph_module, path, ends)
    labels = _Labels({*path.nodes, *cached})
    for layer, unit in enumerate(units):
        first: Label = ("qkv" if has_attention else "output", 0)
        stream = path.residual_stream(unit[-1])
        labels.write(labels.before([stream]), ("output", layer - 1) if layer else first)
        leading = labels.before([unit[-1]])
        if has_attention:
            inside = path.after(unit[0])
            labels.write([n for n in leading if n in cached or n in inside], ("attention", layer))
        labels.write(leading, ("qkv" if has_attention else "output", layer))
    outputs = [n for n in graph_module.graph.output_node().all_input_nodes if n in path.nodes]
    behind = path.after(ends[-1])
    results = [node for node in behind if node in outputs and is_float(node)]
    final = path.last_addition(results[-1]) if results else None
    last: Label = ("output", len(units) - 1)
    if has_attention and final in behind:
        labels.write(labels.before([final]), last)
        labels.write([n for n in path.after(final) if n is not final], ("head", None))
    else:
        labels.write(labels.before(outputs), last)
    labels.spread(path.nodes)
    return labels


def _misunderstood(path: HiddenPath, units: list[list[Node]]) -> str | None:
    if not path.roots:
        return "no embedding of an integer input and no float input, so no hidden states"
    if not units:
        return "neither attention nor coalesced experts, so no layers"
    ends = [unit[-1] for unit in units]
    if not path.is_chain(ends):
        return f"{', '.join(end.name for end in ends)} do not depend on each other in turn"
    for before, end in pairwise(ends):
        stream = path.residual_stream(end)
        if stream is None or path.position(stream) < path.position(before):
            return f"no residual stream lies between {before.name} and {end.name}"
    return None


def _read_from_cache(
    graph_module: GraphModule, path: HiddenPath, ends: Collection[Node]
) -> dict[Node, None]:
    """What depends on a cache, up to the attention that reads it.

    Caches are float inputs of rank 3 or more that are written back, or that hidden states are
    appended to.
    """
    graph = graph_module.graph
    found: dict[Node, None] = {}
    written = [
        node.args[0] for node in graph.find_nodes(op="call_function", target=aten.copy_.default)
    ]
    for cat in graph.find_nodes(op="call_function", target=aten.cat.default):
        if cat in path.nodes:
            written += [n for n in cat.all_input_nodes if n.op in ("placeholder", "get_attr")]
    caches = {n for n in written if isinstance(n, Node) and is_float(n) and len(shape_of(n)) > 2}
    for node in graph.nodes:
        sources = node.all_input_nodes
        reads = any(source in found or source in caches for source in sources)
        if reads and node.op == "call_function" and not any(s in ends for s in sources):
            found[node] = None
    return found
