"""Dynamo's graph → the one normal form every later pass reads."""

from typing import cast

import torch
from torch._functorch.aot_autograd import aot_export_module
from torch.fx import GraphModule, Node

from coxcompile.passes.context import PassContext

aten = torch.ops.aten


def normalize(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Functional ATen with linear and attention kept whole, as torch.export's training IR has it.

    Writes: one placeholder per example input, in order, named in ``meta["path"]``; ``meta["val"]``
    on every node; inputs the model mutates (a StaticCache) written back by ``copy_`` at the end,
    the form Inductor turns into an update in place. Must not fire on a graph that needs gradients:
    the backend has refused those before.
    """
    exported, signature = aot_export_module(
        graph_module,
        context.example_inputs,
        trace_joint=False,
        pre_dispatch=True,
        decompositions={},
    )
    normalized = cast(GraphModule, exported)
    state = dict(graph_module.named_parameters()) | dict(graph_module.named_buffers())
    lifted = [str(name) for name in (*signature.parameters, *signature.buffers)]
    placeholders = normalized.graph.find_nodes(op="placeholder")
    for node, name in zip(placeholders, lifted, strict=False):
        _make_attribute(normalized, node, name, state[name])
    inputs = placeholders[len(lifted) :]
    for node, name in zip(inputs, context.input_names, strict=True):
        node.meta["path"] = name

    by_name = {node.name: node for node in placeholders}
    targets = {str(k): by_name[v] for k, v in signature.user_inputs_to_mutate.items()}
    for result, buffer in signature.buffers_to_mutate.items():
        targets[str(result)] = next(
            node for node in normalized.graph.find_nodes(op="get_attr", target=_attribute(buffer))
        )
    _write_back_mutations(normalized, targets)
    _erase_assertions(normalized)
    return normalized


def _attribute(name: str) -> str:
    return name.replace(".", "_")


def _make_attribute(graph_module: GraphModule, node: Node, name: str, value: torch.Tensor) -> None:
    graph_module.register_buffer(_attribute(name), value.detach(), persistent=False)
    with graph_module.graph.inserting_before(node):
        attribute = graph_module.graph.get_attr(_attribute(name))
    attribute.meta = dict(node.meta)
    node.replace_all_uses_with(attribute)
    graph_module.graph.erase_node(node)


def _write_back_mutations(graph_module: GraphModule, targets: dict[str, Node]) -> None:
    output = graph_module.graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]
    with graph_module.graph.inserting_before(output):
        for result in results[: len(targets)]:
            assert isinstance(result, Node)
            target = targets[result.name]
            copied = graph_module.graph.call_function(aten.copy_.default, (target, result))
            copied.meta["val"] = target.meta["val"]
    output.args = (tuple(results[len(targets) :]),)


def _erase_assertions(graph_module: GraphModule) -> None:
    """Dtype assertions of the trace hold by construction, and would keep rewritten nodes alive."""
    for node in graph_module.graph.find_nodes(
        op="call_function", target=aten._assert_tensor_metadata.default
    ):
        graph_module.graph.erase_node(node)
