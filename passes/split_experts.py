"""Each layer's experts → resident, migrating and the CPU's: their shares (paper §4.1)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.fx import Graph, GraphModule, Node

from coxcompile.passes.context import PassContext, parameter_path
from coxcompile.passes.devices import add_node
from coxcompile.planner.plan import ExpertSplit, StagePlan
from coxcompile.runtime import instructions
from coxcompile.runtime.expert_layer import ExpertLayer
from coxcompile.runtime.kernels.gpu.workspace import workspace_bytes

aten = torch.ops.aten


def split_experts(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Write each ``coalesced_experts`` that the plan splits as the shares of its parts.

    Writes ``run_experts`` for the experts that stay on the accelerator and for each that migrates
    there (``stage_expert``, ``fetch_expert``), all adding to one float32 output; the tokens of the
    CPU's experts are packed, computed by ``run_cpu_experts`` and added. Migrating experts whose
    slots are filled ahead come first; the resident ones fill the time until others arrive. Not
    coalesced, a layer's migrating experts are fetched once for all its micro-batches. The places of
    pinned memory are left open, for the schedule to give out.

    Must not fire on a layer whose experts are all the CPU's: it stays one op where the weights lie.
    """
    placement = context.placement
    assert placement is not None
    splitter = _Splitter(graph_module.graph, placement.plan, context)
    for group in _layers(graph_module):
        split = placement.plan.experts[group.moe_layer]
        if split.resident + split.migrating:
            splitter.split(group, split)
    graph_module.graph.eliminate_dead_code()
    return graph_module


@dataclass
class _Group:
    """The nodes that run one layer's experts for one block: one, or one a micro-batch."""

    moe_layer: int
    nodes: list[Node] = field(default_factory=list)


def _layers(graph_module: GraphModule) -> list[_Group]:
    groups: dict[tuple[int, int], _Group] = {}
    numbers: dict[int, int] = {}
    nodes = graph_module.graph.find_nodes(
        op="call_function", target=torch.ops.coxmoe.coalesced_experts.default
    )
    for node in sorted(nodes, key=lambda node: node.meta["layer"]):
        moe_layer = numbers.setdefault(node.meta["layer"], len(numbers))
        key = (node.meta.get("block", 0), moe_layer)
        groups.setdefault(key, _Group(moe_layer)).nodes.append(node)
    return [groups[key] for key in sorted(groups)]


class _Splitter:
    def __init__(self, graph: Graph, plan: StagePlan, context: PassContext) -> None:
        self.graph = graph
        self.plan = plan
        self.layers = context.expert_layers
        self.gpu_kernels = context.gpu_kernels
        self.resident = sum(split.resident for split in plan.experts)
        self.next_resident = 0
        self.fetches = 0
        self.known: dict[int, int] = {}

    def split(self, group: _Group, split: ExpertSplit) -> None:
        nodes = group.nodes
        number = self._declare(nodes[0], group.moe_layer, split)
        layer = self.layers[number]
        if self.plan.coalesced:
            (node,) = nodes
            with self.graph.inserting_before(node):
                self._replace(node, number, self._coalesced_order(layer, number, node))
            return
        with self.graph.inserting_before(nodes[0]):
            ranks = range(split.resident, split.resident + split.migrating)
            fetched = [self._fetch(nodes[0], layer, number, rank) for rank in ranks]
        for node in nodes:
            with self.graph.inserting_before(node):
                self._replace(node, number, iter([(0, fetched)]))

    def _declare(self, node: Node, moe_layer: int, split: ExpertSplit) -> int:
        """The number of the layer's record; later blocks use the first one's."""
        if node.meta["layer"] in self.known:
            return self.known[node.meta["layer"]]
        weights = cast(Sequence[Node | None], node.args[3:7])
        resident, migrating = split.resident, split.migrating
        if self.plan.coalesced:
            tables = [*_chunks(resident, self._chunk_count(split))]
            tables += [(rank,) for rank in range(resident, resident + migrating)]
        else:
            tables = [tuple(range(resident + migrating))]
        self.layers.append(
            ExpertLayer(
                number=moe_layer,
                path=parameter_path(node.args[4].meta.get("path", node.name)),  # type: ignore[union-attr]
                split=split,
                first_slot=self.next_resident,
                migrating_slots=tuple(self._slots(migrating)),
                tables=tuple(tables),
                weights=tuple(None if w is None else w.meta["val"] for w in weights),
                inputs=tuple(None if w is None else w.name for w in weights),
                arguments=dict(node.kwargs),
                top_k=int(node.args[1].meta["val"].shape[1]),  # type: ignore[union-attr]
            )
        )
        self.next_resident += resident
        self.known[node.meta["layer"]] = len(self.layers) - 1
        return len(self.layers) - 1

    def _slots(self, migrating: int) -> Iterator[int]:
        """A ring, in the order of the fetches; where layers wait for theirs, one layer's slots."""
        if not self.plan.fetches_overlap:
            self.fetches = 0
        for _ in range(migrating):
            yield self.resident + self.fetches % self.plan.staging_experts
            self.fetches += 1

    def _chunk_count(self, split: ExpertSplit) -> int:
        return min(split.resident, 1 + max(split.migrating - self.plan.staging_experts, 0))

    def _coalesced_order(
        self, layer: ExpertLayer, number: int, node: Node
    ) -> Iterator[tuple[int, list[Node]]]:
        """Tables in the order in which they run, each with the fetches that it needs."""
        chunks = self._chunk_count(layer.split)
        ahead = min(self.plan.staging_experts, layer.split.migrating)
        first = layer.split.resident
        for index in range(ahead):
            yield chunks + index, [self._fetch(node, layer, number, first + index)]
        for chunk in range(max(chunks, layer.split.migrating - ahead)):
            if chunk < chunks:
                yield chunk, []
            if ahead + chunk < layer.split.migrating:
                index = ahead + chunk
                yield chunks + index, [self._fetch(node, layer, number, first + index)]

    def _replace(self, node: Node, number: int, tables: Iterator[tuple[int, list[Node]]]) -> None:
        layer = self.layers[number]
        tokens = cast(tuple[Node, Node, Node], node.args[:3])
        hidden_states = tokens[0]
        value = hidden_states.meta["val"]
        total = value.new_empty(value.shape, dtype=torch.float32)
        output = self._add(node, instructions.new_expert_output, (hidden_states,), total)
        packed = None
        if layer.split.cpu:
            count, rows = (value.new_empty(size, dtype=torch.int64) for size in (1, len(value)))
            packed_value = (count, rows, *(torch.empty_like(t.meta["val"]) for t in tokens))
            packed = self._add(node, instructions.pack_rows, (*tokens, number), packed_value)
        workspace = self._workspace(layer, value)
        for table, fetched in tables:
            arguments = (output, *tokens, number, table, fetched)
            output = self._add(node, instructions.run_experts, arguments, total)
            output.meta["kernel_workspace"] = workspace
        if packed is not None:
            results = self._add(
                node,
                instructions.run_cpu_experts,
                (packed, number, *node.args[3:7]),
                torch.empty_like(value),
                device="cpu",
            )
            output = self._add(node, instructions.add_rows, (output, packed, results), total)
        result = self._add(
            node, aten._to_copy.default, (output,), node.meta["val"], dtype=value.dtype
        )
        node.replace_all_uses_with(result)

    def _workspace(self, layer: ExpertLayer, hidden_states: torch.Tensor) -> int:
        if self.gpu_kernels == "torch":
            return 0
        down = layer.weights[1]
        assert down is not None
        tokens, hidden = hidden_states.shape
        return workspace_bytes(
            tokens * layer.top_k,
            layer.experts,
            hidden,
            down[0].numel() // hidden,
            hidden_states.itemsize,
        )

    def _fetch(self, node: Node, layer: ExpertLayer, number: int, rank: int) -> Node:
        weights = [weight for weight in node.args[3:7] if weight is not None]
        slot = layer.slot_of(rank)
        staged = self._add(
            node,
            instructions.stage_expert,
            (None, number, rank, *weights),
            None,
            device="cpu",
        )
        fetched = self._add(node, instructions.fetch_expert, (staged, slot, number, rank), None)
        for added in (staged, fetched):
            added.meta.pop("micro_batch", None)
        return fetched

    def _add(
        self,
        node: Node,
        target: Callable[..., Any],
        arguments: tuple[Any, ...],
        value: Any,
        *,
        device: str = "gpu",
        **keywords: Any,
    ) -> Node:
        return add_node(self.graph, node, target, arguments, value, device, **keywords)


def _chunks(count: int, chunks: int) -> Iterator[tuple[int, ...]]:
    """Ranks below ``count`` in so many chunks of about equal size."""
    for chunk in range(chunks):
        yield tuple(range(count * chunk // chunks, count * (chunk + 1) // chunks))
