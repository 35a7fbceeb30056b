"""What a co-execution graph computes, told by the meaning of its instructions, in graph order."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_map_only

from coxcompile.runtime import instructions
from coxcompile.runtime.expert_layer import ExpertLayer
from coxcompile.runtime.kernels.rows import add_rows_, pack_rows
from tests.graph_cases import Graph
from tests.numerics import relative_error

TOLERANCE = 1e-5


def results(graph: Graph) -> list[Tensor]:
    """What the graph returns for its example inputs, and how it leaves those it may change."""
    inputs = [
        value.clone() if _may_change(value) else value for value in graph.context.example_inputs
    ]
    with torch.no_grad():
        outputs = Reference(graph).run(*inputs)
    changed = [value for value in inputs if _may_change(value)]
    return [value for value in (*outputs, *changed) if isinstance(value, Tensor)]


def assert_same_results(actual: Graph, expected: Graph) -> None:
    """Both graphs return the same, and leave their inputs alike."""
    for after, before in zip(results(actual), results(expected), strict=True):
        assert after.dtype == before.dtype
        assert relative_error(after, before) < TOLERANCE


def _may_change(value: object) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter)


class Reference(Interpreter):
    """Runs a graph on the CPU. Experts have their own number as rank.

    Memory behaves as an accelerator's would at its worst: copies are copies, and what is freed, or
    was in memory that is filled anew, becomes NaN. Before the schedule, nothing is filled anew.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.graph_module)
        self.layers = graph.context.expert_layers
        self.is_scheduled = any("stream" in node.meta for node in graph.nodes)
        self.inputs: dict[str, Any] = {}
        self.memory: dict[str, Sequence[Tensor]] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "placeholder":
            self.inputs[n.name] = result
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry out an instruction, or call an operator."""
        meaning: Callable[..., Any] | None = _MEANINGS.get(target)
        if meaning is not None:
            return meaning(self, *args)
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A partition's results are its own, never views of what it was given."""
        return _copied(super().call_module(target, args, kwargs))

    def fill(self, name: str, values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Copy values into memory with a name."""
        if self.is_scheduled:
            _free(self.memory.get(name, ()))
        self.memory[name] = [value.clone() for value in values]
        return self.memory[name]

    def run_experts(
        self,
        output: Tensor,
        hidden_states: Tensor,
        expert_ids: Tensor,
        routing_weights: Tensor,
        number: int,
        table: int,
        fetched: Sequence[tuple[int, int, Sequence[Tensor]]],
    ) -> Tensor:
        """Add the share of a table's experts."""
        layer = self.layers[number]
        tokens = (output, hidden_states, expert_ids, routing_weights)
        weights = [self.inputs[name] for name in layer.inputs if name is not None]
        arrived = {rank: experts for layer_, rank, experts in fetched if layer_ == number}
        ranks = layer.tables[table]
        experts = [arrived.get(rank, [weight[rank] for weight in weights]) for rank in ranks]
        assert arrived.keys() == {rank for rank in ranks if rank >= layer.split.resident}
        self._experts(layer, tokens, ranks, experts)
        return output

    def run_cpu_experts(self, rows: Sequence[Tensor], number: int, *weights: Any) -> Tensor:
        """The share of the CPU's experts, for the rows before the count alone."""
        layer = self.layers[number]
        count, _, *tokens = rows
        first = [part[: int(count)] for part in tokens]
        output = torch.zeros(first[0].shape, dtype=torch.float32)
        ranks = layer.cpu_ranks
        experts = [[w[rank] for w in weights if w is not None] for rank in ranks]
        self._experts(layer, (output, *first), ranks, experts)
        results = torch.full(tokens[0].shape, float("nan"))
        results[: int(count)] = output
        return results.to(tokens[0].dtype)

    def pack(self, hidden: Tensor, ids: Tensor, weights: Tensor, number: int) -> Any:
        """The rows that the CPU's experts get."""
        layer = self.layers[number]
        slots = torch.full((layer.experts,), -1)
        slots[list(layer.cpu_ranks)] = 0
        return pack_rows(hidden, ids, weights, slots)

    def _experts(
        self,
        layer: ExpertLayer,
        tokens: tuple[Tensor, ...],
        ranks: Sequence[int],
        experts: Sequence[Sequence[Tensor]],
    ) -> None:
        if not len(ranks):
            return
        slots = torch.full((layer.experts,), -1)
        slots[list(ranks)] = torch.arange(len(ranks))
        stacked = iter([torch.stack(parts) for parts in zip(*experts, strict=True)])
        arena = [None if like is None else next(stacked) for like in layer.weights]
        torch.ops.coxmoe.experts_subset_(*tokens, slots, *arena, **layer.arguments)


def _copied(value: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, value)


def _add_rows(output: Tensor, rows: Sequence[Tensor], results: Tensor) -> Tensor:
    add_rows_(output, results, rows[1], rows[0])
    return output


def _free(value: Any) -> None:
    # Sizes and positions stay: a wrong one would crash, where NaN shows itself.
    tree_map_only(Tensor, lambda v: v.fill_(float("nan")) if v.is_floating_point() else v, value)


_MEANINGS: dict[Any, Callable[..., Any]] = {
    instructions.transfer_start: lambda _, value, device: _copied(value),
    instructions.transfer_rows_start: lambda _, value, device: _copied(value),
    instructions.transfer_wait: lambda _, value: value,
    instructions.device_weight: lambda _, value: _copied(value),
    instructions.device_cache: lambda _, value: _copied(value),
    instructions.stage_expert: lambda self, place, layer, rank, *weights: self.fill(
        f"pinned {place}", [weight[rank] for weight in weights]
    ),
    instructions.fetch_expert: lambda self, staged, slot, layer, rank: (
        layer,
        rank,
        self.fill(f"slot {slot}", staged),
    ),
    instructions.stage_weights: lambda self, place, *parameters: self.fill(
        f"pinned {place}", parameters
    ),
    instructions.fetch_weights: lambda self, staged, buffer: self.fill(f"weights {buffer}", staged),
    instructions.new_expert_output: lambda _, value: torch.zeros(value.shape),
    instructions.run_experts: Reference.run_experts,
    instructions.pack_rows: Reference.pack,
    instructions.run_cpu_experts: Reference.run_cpu_experts,
    instructions.add_rows: lambda _, *arguments: _add_rows(*arguments),
    instructions.record_event: lambda _, number: None,
    instructions.wait_event: lambda _, number: None,
    instructions.free: lambda _, value: _free(value),
}
