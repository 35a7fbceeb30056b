"""The graph of a whole batch → its hidden-state path once for each micro-batch."""

from collections.abc import Mapping

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from coxcompile.passes.batch_rules import Batch, CannotDivide, Divided, Division, divide, spans
from coxcompile.passes.context import PassContext, parameters_of

aten = torch.ops.aten
_EXPERTS = torch.ops.coxmoe.coalesced_experts.default
_WHOLE = "The graph stays one micro-batch"


def micro_batch(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Divide the batch into the plan's blocks and micro-batches (paper §4.1, μ).

    Whatever depends on the hidden states is computed once for each micro-batch of
    ``plan.micro_batch`` sequences (the last of a block may have fewer), each
    ``coxmoe.coalesced_experts`` once for each block of ``plan.block`` sequences if
    ``plan.coalesced``. Such an op takes ``cat`` of the block's micro-batches and each of them takes
    a ``slice`` of its result; the graph returns ``cat`` of all. An input that is written back
    (a KV cache) is written by each micro-batch through the slice it reads it by. What does not
    depend on the batch, and masks, which do not depend on hidden states, are computed once and
    sliced where they are used.

    Writes: ``meta["micro_batch"]``, the number among the micro-batches of all blocks, and
    ``meta["block"]``; coalesced experts and the ``cat`` before them have the latter alone. Copies
    keep their node's other ``meta``; a ``cat`` has the operation and layer of what it joins
    and the device of what reads it, a ``slice`` all of its first consumer's.

    Must not fire without a placement. A graph stays one micro-batch, number 0, if the plan says so,
    and, with a sentence in ``context.notes``, if its shapes are symbolic, if no batch is found, or
    if an op mixes sequences or has no rule in ``batch_rules``.
    """
    if context.placement is None:
        return graph_module
    plan = context.placement.plan
    graph = graph_module.graph
    first = _first_hidden_states(graph_module, context)
    if first is None:
        context.notes.append(f"{_WHOLE}: it embeds no token ids and takes no hidden states.")
        return graph_module
    sequences = first.meta["val"].shape[0]
    inputs = {first} | _written_back(graph, sequences)
    divided: Mapping[Node, Divided] = {}
    try:
        micro_batches, blocks = spans(sequences, plan.block, plan.micro_batch)
        if len(micro_batches) > 1:
            divided = _follow(graph, inputs, sequences)
    except CannotDivide as reason:
        context.notes.append(f"{_WHOLE}: {reason}.")
    if not divided:
        _mark_whole(graph, inputs, plan.coalesced)
        return graph_module
    division = Division(graph_module, divided, micro_batches, blocks)
    for node in divided:
        if node.target is _EXPERTS and plan.coalesced:
            division.coalesce(node)
        else:
            division.divide(node)
    division.finish()
    return graph_module


def _first_hidden_states(graph_module: GraphModule, context: PassContext) -> Node | None:
    """The embedding of the token ids [B, S], or an input [B, S, H] in its place."""
    parameters = parameters_of(graph_module, context)
    graph = graph_module.graph
    token_embeddings = (
        node
        for node in graph.find_nodes(op="call_function", target=aten.embedding.default)
        if _depends_on_token_ids(node.args[1]) and node.meta["val"].dim() >= 3
    )
    embedded_inputs = (
        node
        for node in graph.find_nodes(op="placeholder")
        if node not in parameters and _is_floating(node) and node.meta["val"].dim() == 3
    )
    return next(token_embeddings, None) or next(embedded_inputs, None)


def _depends_on_token_ids(value: object) -> bool:
    if not isinstance(value, Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return False
    if value.op == "placeholder":
        return not _is_floating(value) and value.meta["val"].dim() >= 2
    return any(_depends_on_token_ids(source) for source in value.all_input_nodes)


def _is_floating(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _written_back(graph: Graph, sequences: int | torch.SymInt) -> set[Node]:
    """Inputs of ``sequences`` rows that the graph writes: caches, and no counters."""
    targets = {
        node.args[0] for node in graph.find_nodes(op="call_function", target=aten.copy_.default)
    }
    return {
        target
        for target in targets
        if isinstance(target, Node)
        and _is_floating(target)
        and target.meta["val"].dim() > 0
        and statically_known_true(target.meta["val"].shape[0] == sequences)
    }


def _follow(graph: Graph, inputs: set[Node], sequences: int) -> Mapping[Node, Divided]:
    """How to divide each node with the batch, from ``inputs`` on."""
    batches = {node: Batch(0, 1) for node in inputs if node.op != "call_function"}
    divided: dict[Node, Divided] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        # Token ids are followed into the embedding alone: what else reads them has no rule to obey.
        known = {**batches, node.args[1]: Batch(0, 1)} if node in inputs else batches
        if known.keys().isdisjoint(node.all_input_nodes):
            continue
        try:
            divided[node] = divide(node, known, sequences)
        except CannotDivide as reason:
            raise CannotDivide(f"{node.name} ({node.target}) {reason}") from None
        batch = divided[node].batch
        if batch is not None:
            batches[node] = batch
    return divided


def _mark_whole(graph: Graph, inputs: set[Node], coalesced: bool) -> None:
    """Everything that depends on ``inputs`` belongs to micro-batch 0 of block 0."""
    reached = set(inputs)
    for node in graph.nodes:
        if node.op == "call_function" and not reached.isdisjoint([node, *node.all_input_nodes]):
            reached.add(node)
            node.meta["block"] = 0
            if not (node.target is _EXPERTS and coalesced):
                node.meta["micro_batch"] = 0
