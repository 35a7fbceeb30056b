"""The verified graph → an executor, its partitions compiled for the side that each is on."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch._inductor.compile_fx import compile_fx
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from coxcompile.ops import CPU_KERNELS
from coxcompile.passes.context import PassContext, parameters_of
from coxcompile.passes.device_memory import arena_slots, workspace
from coxcompile.passes.retarget import retarget
from coxcompile.passes.stream_linears import stream_linears_of
from coxcompile.runtime.accelerator import Accelerator, Kernel
from coxcompile.runtime.executor import Executor
from coxcompile.runtime.expert_store import ExpertStore
from coxcompile.runtime.kernels import inductor_obstacle, report_missing


def lower_coexecution(
    graph_module: GraphModule, context: PassContext, accelerator: Accelerator
) -> Executor:
    """Compile each partition with Inductor for its device; equal ones (micro-batches, layers) once.

    Linears of few tokens on the CPU stream their weights, as without an accelerator. Without a C++
    compiler partitions for the CPU run operator by operator, and the user is told once.
    """
    parameters = parameters_of(graph_module, context)
    kernels: dict[str, Kernel] = {}
    compiled: dict[Any, Kernel] = {}
    for node in graph_module.graph.nodes:
        node.meta["workspace"] = workspace(graph_module, node)
    for node in graph_module.graph.find_nodes(op="call_module"):
        inner = cast(GraphModule, getattr(graph_module, str(node.target)))
        if node.meta["device"] == "gpu":
            retarget(inner, accelerator.kernel_device)
        elif torch.cpu._is_avx512_bf16_supported():
            stream_linears_of(inner, _weights(node, inner, parameters))
        key = _structure(inner)
        if key not in compiled:
            compiled[key] = compile_partition(inner)
        kernels[str(node.target)] = compiled[key]
    layers = context.expert_layers
    return Executor(
        graph_module,
        kernels,
        accelerator,
        ExpertStore(accelerator, layers, _orders(context), arena_slots(layers)),
        accelerator.experts_kernel(context.gpu_kernels),
        context.throttle,
    )


def compile_partition(inner: GraphModule) -> Kernel:
    """A callable from the partition's inputs to the tuple of its results."""
    values = [node.meta["val"] for node in inner.graph.find_nodes(op="placeholder")]
    on_cpu = all(value.device.type == "cpu" for value in values if isinstance(value, Tensor))
    if on_cpu and (obstacle := inductor_obstacle()) is not None:
        report_missing(CPU_KERNELS == "native", obstacle)
        return inner.forward
    return cast(Kernel, compile_fx(inner, values))


def _weights(
    node: Node, inner: GraphModule, parameters: Mapping[Node, Tensor]
) -> dict[Node, Tensor]:
    placeholders = inner.graph.find_nodes(op="placeholder")
    pairs = zip(placeholders, node.args, strict=True)
    return {inside: parameters[outside] for inside, outside in pairs if outside in parameters}  # type: ignore[index]


def _structure(inner: GraphModule) -> Any:
    """Equal for partitions that compute the same from inputs of the same kind."""
    numbers = {node: number for number, node in enumerate(inner.graph.nodes)}

    def describe(argument: Any) -> Any:
        return map_aggregate(argument, lambda a: f"%{numbers[a]}" if isinstance(a, Node) else a)

    return tuple(
        (
            node.op,
            str(node.target) if node.op == "call_function" else None,
            repr(describe(node.args)),
            repr(describe(node.kwargs)),
            _kind(node.meta.get("val")) if node.op == "placeholder" else None,
        )
        for node in inner.graph.nodes
    )


def _kind(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.shape, value.stride(), value.dtype, value.device.type


def _orders(context: PassContext) -> list[list[int]]:
    activation_map = context.options.activation_map
    if activation_map is None:
        return [list(range(layer.experts)) for layer in context.expert_layers]
    hottest = activation_map.hottest(activation_map.experts)
    return [hottest[layer.number].tolist() for layer in context.expert_layers]
