"""The graph of all sequences → the graph that computes spans of them, by the rules' answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from coxcompile.passes.batch_rules.call import Batch, Cut, Divided, Elements
from coxcompile.passes.batch_rules.nodes import argument_names, call, check_part
from coxcompile.passes.batch_rules.spans import Span

aten = torch.ops.aten
_PLACED = ("operation", "layer", "device")


class Division:
    """Puts each divided node's copies before it; :meth:`finish` takes the nodes themselves away.

    Args:
        graph_module: its graph is rewritten.
        divided: how to compute each node that has the batch, in the graph's order.
        micro_batches: the spans nodes are computed for, in order; they cover all sequences.
        blocks: the spans a coalesced node is computed for.
    """

    def __init__(
        self,
        graph_module: GraphModule,
        divided: Mapping[Node, Divided],
        micro_batches: Sequence[Span],
        blocks: Sequence[Span],
    ) -> None:
        self._graph = graph_module.graph
        self._divided = divided
        self._micro_batches = micro_batches
        self._blocks = blocks
        self._copies: dict[tuple[Node, Span], Node] = {}
        self._parts: dict[tuple[Node, Batch, Span], Node] = {}
        self._made_once: dict[Node, Node] = {}

    def divide(self, node: Node) -> None:
        """Compute ``node`` once for each micro-batch."""
        divided = self._divided[node]
        with self._graph.inserting_before(node):
            if divided.batch is None:
                self._make_once(node, divided)
            else:
                for span in self._micro_batches:
                    self._copies[node, span] = self._copy(node, divided, span)

    def coalesce(self, node: Node) -> None:
        """Compute ``node`` once for each block, and give each micro-batch its part of the result.

        A block of one micro-batch needs neither cats nor slices.
        """
        divided = self._divided[node]
        assert divided.batch is not None
        consumer = next(iter(node.users), node)
        with self._graph.inserting_before(node):
            for block in self._blocks:
                result = self._copy(node, divided, block)
                inside = [span for span in self._micro_batches if block.holds(span)]
                for span in inside:
                    self._copies[node, span] = (
                        result
                        if len(inside) == 1
                        else self._slice(result, divided.batch, span, consumer, block.start)
                    )

    def finish(self) -> None:
        """Join what the graph returns, and erase the nodes that compute all sequences."""
        output = self._graph.output_node()
        everything = Span(0, self._micro_batches[-1].stop)
        with self._graph.inserting_before(output):
            output.args = map_arg(output.args, lambda value: self._joined(value, everything))
        for node in reversed(list(self._divided)):
            self._graph.erase_node(node)

    def _joined(self, value: Node, span: Span) -> Node:
        divided = self._divided.get(value)
        if divided is None or divided.batch is None:
            return self._made_once.get(value, value)
        return self._part(Cut(value, divided.batch), span, value)

    def _make_once(self, node: Node, divided: Divided) -> None:
        assert divided.once is not None
        args, kwargs = [], {}
        for argument in divided.once._schema.arguments:
            if argument.name in divided.arguments:
                value = divided.arguments[argument.name]
                if argument.kwarg_only:
                    kwargs[argument.name] = value
                else:
                    args.append(value)
        made = call(self._graph, divided.once, tuple(args), kwargs, node.name)
        made.meta = {**node.meta, **made.meta}
        node.replace_all_uses_with(made)
        self._made_once[node] = made

    def _copy(self, node: Node, divided: Divided, span: Span) -> Node:
        def fill(value: object) -> object:
            if isinstance(value, Cut):
                return self._part(value, span, node)
            if isinstance(value, Elements):
                return value.per_sequence * (span.stop - span.start)
            return self._made_once.get(value, value) if isinstance(value, Node) else value

        def argument(name: str, given: object) -> object:
            return tree_map(fill, divided.arguments.get(name, given))

        assert divided.batch is not None
        names = argument_names(node)
        args = tuple(argument(name, given) for name, given in zip(names, node.args, strict=False))
        kwargs = {name: argument(name, given) for name, given in node.kwargs.items()}
        suffix = f"b{span.block}" if span.micro_batch is None else f"m{span.micro_batch}"
        copy = call(self._graph, node.target, args, kwargs, f"{node.name}_{suffix}")
        check_part(node, copy, divided.batch, span)
        copy.meta = {**node.meta, **copy.meta, **span.meta()}
        return copy

    def _part(self, cut: Cut, span: Span, consumer: Node) -> Node:
        """A span's part of a value: its copy, the copies of what it holds joined, or a slice."""
        value = self._made_once.get(cut.value, cut.value)
        if (value, span) in self._copies:
            return self._copies[value, span]
        key = (value, cut.batch, span)
        if key not in self._parts:
            held = [part for part in self._micro_batches if span.holds(part)]
            copies = [self._copies[value, part] for part in held if (value, part) in self._copies]
            if len(copies) > 1:
                self._parts[key] = self._cat(copies, cut.batch.dim, span, value, consumer)
            else:
                self._parts[key] = (
                    copies[0] if copies else self._slice(value, cut.batch, span, consumer)
                )
        return self._parts[key]

    def _cat(
        self, copies: list[Node], dim: int, span: Span, producer: Node, consumer: Node
    ) -> Node:
        joined = call(self._graph, aten.cat.default, (copies, dim), {}, f"{producer.name}_joined")
        joined.meta.update(_placed(producer) | span.meta())
        # Joined where it is read, so that each part crosses the link as soon as it is there.
        if "device" in consumer.meta:
            joined.meta["device"] = consumer.meta["device"]
        return joined

    def _slice(self, value: Node, batch: Batch, span: Span, consumer: Node, first: int = 0) -> Node:
        start, stop = ((end - first) * batch.per_sequence for end in (span.start, span.stop))
        args = (value, batch.dim, start, stop)
        part = call(self._graph, aten.slice.Tensor, args, {}, f"{value.name}_part")
        part.meta.update(_placed(consumer) | span.meta())
        return part


def _placed(node: Node) -> dict[str, Any]:
    return {name: node.meta[name] for name in _PLACED if name in node.meta}
