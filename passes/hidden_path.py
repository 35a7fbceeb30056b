"""The path of the hidden states through a graph: what depends on them, what all of it passes."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

import networkx  # type: ignore[import-untyped]
import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from coxcompile.passes.context import PassContext, parameters_of
from coxcompile.passes.moe_forms.patterns import is_call, shape_of
from coxcompile.passes.products import ATTENTION, PRODUCTS, is_float, weight_of

aten = torch.ops.aten

_START = "start"


class HiddenPath:
    """What depends on the hidden states, in the graph's order.

    They begin at the embeddings of the integer inputs; in a graph without, at the float input, no
    parameter, on which most depends.

    Attributes:
        nodes: the path; a root that is an input is among them. Sizes of tensors are not.
        roots: where it begins; none if there is neither embedding nor float input.
    """

    def __init__(self, graph_module: GraphModule, context: PassContext) -> None:
        self._graph = graph_module.graph
        parameters = parameters_of(graph_module, context)
        inputs = [n for n in self._graph.find_nodes(op="placeholder") if n not in parameters]
        floats = [n for n in inputs if is_float(n)]
        integers = self._following([n for n in inputs if _is_integer(n)])
        self.roots = [
            node
            for node in self._graph.find_nodes(op="call_function", target=aten.embedding.default)
            if node.args[0] in parameters and node.args[1] in integers
        ]
        if not self.roots and floats:
            self.roots = [max(floats, key=lambda node: len(self._following([node])))]
        self.nodes = self._following(self.roots)
        self._order = list(self.nodes)
        self._positions = {node: position for position, node in enumerate(self._order)}
        self._dominators = self._immediate_dominators()

    def _following(self, sources: Collection[Node]) -> dict[Node, None]:
        found: dict[Node, None] = {}
        for node in self._graph.nodes:
            if node in sources or (
                node.op == "call_function"
                and _holds_tensors(node)
                and any(source in found for source in node.all_input_nodes)
            ):
                found[node] = None
        return found

    def sources(self, node: Node) -> list[Node]:
        """The inputs of ``node`` that are on the path."""
        return [source for source in node.all_input_nodes if source in self.nodes]

    def after(self, start: Node) -> dict[Node, None]:
        """The nodes that depend on ``start``, and itself."""
        found: dict[Node, None] = {start: None}
        for node in self._later(start):
            if any(source in found for source in node.all_input_nodes):
                found[node] = None
        return found

    def is_chain(self, ends: Sequence[Node]) -> bool:
        """Whether each of ``ends``, in the path's order, depends on the one before."""
        passed: dict[Node, int] = {}
        for node in self.nodes:
            passed[node] = max((passed[source] for source in self.sources(node)), default=0)
            if passed[node] < len(ends) and node is ends[passed[node]]:
                passed[node] += 1
        return passed[ends[-1]] == len(ends)

    def position(self, node: Node) -> int:
        """Where ``node`` is in the path's order."""
        return self._positions[node]

    def _later(self, node: Node) -> Iterator[Node]:
        return islice(self._order, self._positions[node] + 1, None)

    def attention_cores(self) -> list[list[Node]]:
        """The products of two activations of each attention, in the graph's order.

        A product by expert weights that were gathered has one activation: whole numbers, which
        choose rows, pass nothing on. A single product of two activations is no attention.
        """
        values: set[Node] = set(self.roots)
        core_of: dict[Node, int] = {}
        cores: list[list[Node]] = []
        for node in self.nodes:
            sources = self.sources(node)
            if not (any(source in values for source in sources) or node in values):
                continue
            if is_float(node) or not isinstance(node.meta["val"], torch.Tensor):
                values.add(node)
            cores_before = [core_of[source] for source in sources if source in core_of]
            if is_call(node, ATTENTION):
                cores.append([node])
            elif is_call(node, *PRODUCTS) and all(operand in values for operand in node.args[:2]):
                core_of[node] = max(cores_before, default=len(cores))
                if core_of[node] == len(cores):
                    cores.append([])
                cores[core_of[node]].append(node)
            elif cores_before and weight_of(node, values.__contains__) is None:
                core_of[node] = max(cores_before)
        return [core for core in cores if len(core) > 1 or is_call(core[0], ATTENTION)]

    def residual_stream(self, core: Node) -> Node | None:
        """The last node that dominates both ``core`` and the first value that bypasses it."""
        behind = {core}
        for node in self._later(core):
            sources = self.sources(node)
            if any(source in behind for source in sources):
                if not all(source in behind for source in sources):
                    return self._dominators.get(node)
                behind.add(node)
        return self._dominators.get(core)

    def last_addition(self, result: Node) -> Node | None:
        """The last dominator of ``result`` that adds two hidden states of one size."""
        node: Node | None = result
        while node is not None and not self._adds_hidden_states(node):
            node = self._dominators.get(node)
        return node

    def _adds_hidden_states(self, node: Node) -> bool:
        if not is_call(node, aten.add.Tensor) or len(self.sources(node)) != 2:
            return False
        first, second = (shape_of(source) for source in self.sources(node))
        return len(first) == len(second) and all(
            statically_known_true(a == b) for a, b in zip(first, second, strict=True)
        )

    def _immediate_dominators(self) -> Mapping[Node, Node]:
        graph = networkx.DiGraph((_START, root) for root in self.roots)
        graph.add_edges_from((s, node) for node in self.nodes for s in self.sources(node))
        found = networkx.immediate_dominators(graph, _START) if self.roots else {}
        return {node: above for node, above in found.items() if isinstance(above, Node)}


def _is_integer(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor) and not is_float(node)


def _holds_tensors(node: Node) -> bool:
    return not isinstance(node.meta.get("val"), int | float | torch.SymInt | torch.SymFloat)
