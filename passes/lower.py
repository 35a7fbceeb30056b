"""The rewritten graph → a callable, through Inductor where it can compile."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch._inductor.config as inductor_config
from torch._inductor.compile_fx import compile_fx
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from coxcompile.ops import CPU_KERNELS
from coxcompile.passes.context import PassContext, parameters_of
from coxcompile.runtime.kernels import inductor_obstacle, report_missing

aten = torch.ops.aten
Compiled = Callable[..., Any]


def lower(graph_module: GraphModule, context: PassContext) -> Compiled:
    """Compile the whole graph with Inductor, linears packed where the budget allows.

    Inductor packs a linear's weight for oneDNN only if it is a constant of the graph (its
    "freezing"). So the weights of linears, smallest first, become constants until their packed
    copies fill ``packed_weight_budget``; expert weights never do, they are read where they lie. A
    packed copy is right only for the tensor it was made from: see :class:`_PackedGraph`. Packs
    nothing in a graph without MoE blocks: that compiles as with ``backend="inductor"``.

    Without a C++ compiler Inductor compiles nothing for the CPU. The graph then runs operator by
    operator, and the user is told once. An error of Inductor is never a reason for that.
    """
    if _computes_on_cpu(graph_module) and (obstacle := inductor_obstacle()) is not None:
        report_missing(CPU_KERNELS == "native", obstacle)
        return graph_module.forward
    packable = _packable_weights(graph_module, context)
    if not packable:
        return cast(Compiled, compile_fx(graph_module, list(context.example_inputs)))
    positions = {node: i for i, node in enumerate(graph_module.graph.find_nodes(op="placeholder"))}
    return _PackedGraph(graph_module, context.example_inputs, [positions[n] for n in packable])


def _computes_on_cpu(graph_module: GraphModule) -> bool:
    values = tree_leaves([node.meta.get("val") for node in graph_module.graph.nodes])
    return any(isinstance(v, torch.Tensor) and v.device.type == "cpu" for v in values)


def _packable_weights(graph_module: GraphModule, context: PassContext) -> list[Node]:
    if not context.blocks or not context.options.pack_linears:
        return []
    parameters = parameters_of(graph_module, context)
    model_bytes = sum({id(p): p.nbytes for p in parameters.values()}.values())
    budget = context.options.packed_weight_budget * model_bytes
    chosen = []
    candidates = [
        node
        for node, parameter in parameters.items()
        if parameter.dim() == 2
        and not parameter.is_inference()
        and node.users
        and all(user.target is aten.linear.default and user.args[1] is node for user in node.users)
    ]
    for node in sorted(candidates, key=lambda node: parameters[node].nbytes):
        budget -= parameters[node].nbytes
        if budget < 0:
            break
        chosen.append(node)
    return chosen


class _PackedGraph:
    """A compiled graph that holds packed copies of some parameters, and knows when they are stale.

    Dynamo runs one compiled graph for several modules of the same shape, and users load new weights
    in place; both would silently run on old copies. So every call compares the parameters with
    those that were packed (the same tensor, at the same version and address) and compiles for the
    new ones if they differ. Writing through ``parameter.data`` in place is the one change that no
    version counts: after that, call ``torch._dynamo.reset()``.
    """

    def __init__(
        self, graph_module: GraphModule, example_inputs: Sequence[Any], packed: Sequence[int]
    ) -> None:
        self._graph_module = graph_module
        self._packed = packed
        self._runtime = [i for i in range(len(example_inputs)) if i not in set(packed)]
        self._variants: dict[tuple[Any, ...], tuple[Compiled, list[torch.Tensor]]] = {}
        self._variant(example_inputs)

    def __call__(self, *inputs: Any) -> Any:
        """Run on the inputs of the original graph."""
        compiled = self._variant(inputs)
        return compiled(*[inputs[i] for i in self._runtime])

    def _variant(self, inputs: Sequence[Any]) -> Compiled:
        parameters = [inputs[i] for i in self._packed]
        # The parameters are kept alive by their variant: an id is never reused for another tensor.
        key = tuple(x for p in parameters for x in (id(p), p._version, p.data_ptr()))
        if key not in self._variants:
            identities = {id(p) for p in parameters}
            self._variants = {
                old: variant
                for old, variant in self._variants.items()
                if not identities & {id(p) for p in variant[1]}
            }
            self._variants[key] = (self._compile(inputs), parameters)
        return self._variants[key][0]

    def _compile(self, inputs: Sequence[Any]) -> Compiled:
        graph = torch.fx.Graph()
        copied: dict[Node, Node] = {}
        outputs = graph.graph_copy(self._graph_module.graph, copied)
        graph.output(outputs)
        frozen = GraphModule(self._graph_module, graph)
        placeholders = self._graph_module.graph.find_nodes(op="placeholder")
        for position in self._packed:
            placeholder = copied[placeholders[position]]
            name = f"packed_{position}"
            frozen.register_parameter(name, inputs[position])
            with graph.inserting_before(placeholder):
                attribute = graph.get_attr(name)
            attribute.meta = dict(placeholder.meta)
            placeholder.replace_all_uses_with(attribute)
            graph.erase_node(placeholder)
        frozen.recompile()
        with inductor_config.patch(freezing=True):
            return cast(Compiled, compile_fx(frozen, [inputs[i] for i in self._runtime]))
