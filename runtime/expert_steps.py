"""The experts of a co-execution graph at work, and the weights that are fetched for it."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

import coxcompile.ops  # noqa: F401  (defines the operators)
from coxcompile.hardware import HardwareSpec
from coxcompile.runtime import instructions
from coxcompile.runtime.accelerator import Accelerator, Kernel
from coxcompile.runtime.expert_store import ExpertStore
from coxcompile.runtime.fetched_weights import FetchedWeights
from coxcompile.runtime.kernels.rows import add_rows_, pack_rows
from coxcompile.runtime.node_seconds import chosen_experts_seconds
from coxcompile.runtime.values import Step, Values, empty_like, fill_with_zeros


class ExpertSteps:
    """Carries out the instructions for experts, and those that fetch weights.

    Args:
        kernel: computes the accelerator's experts, called as ``coxmoe::experts_subset_``.
        hardware: the machine that computing experts is made to last like, if any.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        store: ExpertStore,
        fetched: FetchedWeights,
        kernel: Kernel,
        hardware: HardwareSpec | None,
    ) -> None:
        self._accelerator = accelerator
        self._store = store
        self._fetched = fetched
        self._kernel = kernel
        self._hardware = hardware if accelerator.throttled else None

    @property
    def steps(self) -> dict[Any, Step]:
        """By instruction."""
        return {
            instructions.stage_expert: self._stage_expert,
            instructions.fetch_expert: self._fetch_expert,
            instructions.stage_weights: self._stage_weights,
            instructions.fetch_weights: self._fetch_weights,
            instructions.new_expert_output: self._new_expert_output,
            instructions.run_experts: self._run_experts,
            instructions.pack_rows: self._pack_rows,
            instructions.run_cpu_experts: self._run_cpu_experts,
            instructions.add_rows: self._add_rows,
        }

    def _stage_expert(self, node: Node, values: Values) -> None:
        place, layer, rank, *_ = node.args
        host = [values[weight] for weight in node.args[3:]]  # type: ignore[index]
        expert = self._store.expert(layer, rank)  # type: ignore[arg-type]
        pinned = self._fetched.expert_place(place)  # type: ignore[arg-type]

        @torch.inference_mode()
        def stage() -> None:
            for destination, weight in zip(pinned, host, strict=True):
                destination.copy_(weight[expert])

        self._accelerator.host_callback(stage, node.name)
        values[node] = pinned

    def _fetch_expert(self, node: Node, values: Values) -> None:
        pinned, slot = values[node.args[0]], node.args[1]  # type: ignore[index]
        pairs = list(zip(self._store.slot(slot), pinned, strict=True))  # type: ignore[arg-type]
        self._accelerator.copy(pairs, node.name)
        values[node] = None

    def _stage_weights(self, node: Node, values: Values) -> None:
        host = [values[parameter] for parameter in node.args[1:]]  # type: ignore[index]
        pinned = self._fetched.place(node.args[0], host)  # type: ignore[arg-type]

        @torch.inference_mode()
        def stage() -> None:
            for destination, parameter in zip(pinned, host, strict=True):
                destination.copy_(parameter)

        self._accelerator.host_callback(stage, node.name)
        values[node] = pinned

    def _fetch_weights(self, node: Node, values: Values) -> None:
        pinned = values[node.args[0]]  # type: ignore[index]
        places = self._fetched.weights_buffer(node.args[1], pinned)  # type: ignore[arg-type]
        self._accelerator.copy(list(zip(places, pinned, strict=True)), node.name)
        values[node] = places

    def _new_expert_output(self, node: Node, values: Values) -> None:
        values[node] = empty_like(node.meta["val"], self._accelerator.device)
        self._accelerator.launch(fill_with_zeros, [values[node]], node.name)

    def _run_experts(self, node: Node, values: Values) -> None:
        output, hidden_states, expert_ids, routing_weights = (
            values[argument]  # type: ignore[index]
            for argument in node.args[:4]
        )
        number, table = node.args[4:6]
        layer = self._store.layers[number]  # type: ignore[index]
        unit = self._hardware.gpu if self._hardware else None

        def run(*arguments: Any) -> float | None:
            self._kernel(*arguments, **layer.arguments)
            if unit is None:
                return None
            _, hidden, ids, _, slots, *_ = arguments
            return chosen_experts_seconds(ids, slots, hidden, layer, unit)

        tensors = (output, hidden_states, expert_ids, routing_weights)
        slots = self._store.table(number, table)  # type: ignore[arg-type]
        with self._accelerator.workspace(node.meta["workspace"]):
            self._accelerator.launch(run, [*tensors, slots, *self._store.arena], node.name)
        values[node] = output

    def _pack_rows(self, node: Node, values: Values) -> None:
        tokens = [values[argument] for argument in node.args[:3]]  # type: ignore[index]
        slots = self._store.cpu_table(node.args[3], on_host=False)  # type: ignore[arg-type]
        values[node] = tuple(
            self._accelerator.call(pack_rows, [*tokens, slots], node.meta["val"], node.name, 0.0)
        )

    def _run_cpu_experts(self, node: Node, values: Values) -> None:
        arguments: Any = map_arg(node.args, values.__getitem__)
        rows, number, *weights = arguments
        layer = self._store.layers[number]
        count = int(rows[0])
        hidden_states, expert_ids, routing_weights = (part[:count] for part in rows[1:])
        slots = self._store.cpu_table(number, on_host=True)
        output = torch.zeros(hidden_states.shape, dtype=torch.float32)
        seconds = 0.0
        if self._hardware is not None:
            unit = self._hardware.cpu
            seconds = chosen_experts_seconds(expert_ids, slots, hidden_states, layer, unit)

        tensors = (output, hidden_states, expert_ids, routing_weights)

        def run() -> Tensor:
            torch.ops.coxmoe.experts_subset_(*tensors, slots, *weights, **layer.arguments)
            return output.to(hidden_states.dtype)

        results = self._accelerator.host(run, node.name, seconds)
        values[node] = (results, torch.tensor([count]))

    def _add_rows(self, node: Node, values: Values) -> None:
        output, rows, results = (values[argument] for argument in node.args)  # type: ignore[index]
        self._accelerator.launch(add_rows_, [output, results, rows[1], rows[0]], node.name)
        values[node] = output
