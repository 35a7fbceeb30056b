"""Coalesced blocks → ``coxmoe::ipex_experts``, by Intel Extension for PyTorch, on request."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

import coxcompile.ops  # noqa: F401  (defines the op)
from coxcompile.options import OptionsError
from coxcompile.passes.context import PassContext, parameter_path, parameters_of
from coxcompile.passes.moe_forms.patterns import dtype_of, shape_of
from coxcompile.runtime.kernels import load_ipex
from coxcompile.runtime.kernels.ipex import COUNTED_ELEMENTS

MULTIPLE = 32
"""Of which the operator takes hidden and intermediate sizes."""


def use_ipex_experts(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Put ``coxmoe::ipex_experts`` in place of every ``coxmoe::coalesced_experts``.

    Must not fire without ``cpu_kernels="ipex"``, nor where that was refused
    (:func:`coxcompile.coexecution.refuse_contradictions`). Loads the extension's operators.

    Raises:
        OptionsError: the operator cannot compute a block; it says which, and what it cannot. The
            graph is as before.
    """
    if context.options.cpu_kernels != "ipex":
        return graph_module
    blocks = graph_module.graph.find_nodes(
        op="call_function", target=torch.ops.coxmoe.coalesced_experts.default
    )
    parameters = parameters_of(graph_module, context)
    paths_by_reason = defaultdict(list)
    for block in blocks:
        for reason in _reasons_against(block, parameters):
            paths_by_reason[reason].append(parameter_path(block.args[4].meta["path"]))
    if paths_by_reason:
        raise OptionsError(
            [
                f'option "cpu_kernels": got "ipex", but {reason} ({_shown(paths)}); use "auto"'
                for reason, paths in paths_by_reason.items()
            ]
        )
    if blocks:
        load_ipex()
    for block in blocks:
        _replace(graph_module, block)
    return graph_module


def _replace(graph_module: GraphModule, block: Node) -> None:
    with graph_module.graph.inserting_before(block):
        experts = graph_module.graph.call_function(
            torch.ops.coxmoe.ipex_experts.default, block.args[:5]
        )
    experts.meta = dict(block.meta)
    block.replace_all_uses_with(experts)
    graph_module.graph.erase_node(block)


def _reasons_against(block: Node, parameters: Mapping[Node, Tensor]) -> list[str]:
    """What of the block the operator cannot compute, a clause each."""
    hidden_states, _, _, gate_up, down, gate_up_bias, _ = block.args
    assert isinstance(hidden_states, Node)
    assert isinstance(gate_up, Node)
    assert isinstance(down, Node)
    activation, gate_layout = block.kwargs["activation"], block.kwargs["gate_layout"]
    dtype = dtype_of(hidden_states)
    odd = [str(size) for size in shape_of(down)[1:] if size % MULTIPLE]
    reasons = []
    if dtype != torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        reasons.append(f"it computes in bfloat16, and this model in {name}")
    if activation != "silu":
        reasons.append(f'its activation is "silu", and this model\'s is "{activation}"')
    if gate_layout != "concatenated":
        reasons.append(f"it takes concatenated gate and up, and these are {gate_layout}")
    if block.kwargs["transposed"]:
        reasons.append("it takes weights [E, out, in], and these are transposed")
    if gate_up_bias is not None:
        reasons.append("it adds no biases, and this model has some")
    if odd:
        reasons.append(f"it takes sizes that are multiples of {MULTIPLE}, not {' or '.join(odd)}")
    for weight in (gate_up, down):
        reasons += _reasons_against_weight(parameters.get(weight), weight.meta["val"].numel())
    return list(dict.fromkeys(reasons))


def _reasons_against_weight(parameter: Tensor | None, elements: int) -> list[str]:
    """The same of a weight; ``parameter`` is the model's own, None if the weight is none."""
    reasons = []
    if parameter is None:
        reasons.append("it packs parameters, and these experts' weights are computed")
    elif parameter.is_inference():
        reasons.append(
            "PyTorch counts no changes of weights made in inference mode, so that packed copies "
            "could go stale"
        )
    elif not parameter.is_contiguous():
        reasons.append("its packing takes contiguous weights")
    if elements >= COUNTED_ELEMENTS:
        reasons.append(f"it counts {COUNTED_ELEMENTS} elements of a layer's weights at most")
    return reasons


def _shown(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
