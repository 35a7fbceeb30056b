"""Carrying out a scheduled co-execution graph, node by node, from the one host thread."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

import coxcompile.ops  # noqa: F401  (defines the operators)
from coxcompile.hardware import HardwareSpec
from coxcompile.runtime import instructions
from coxcompile.runtime.accelerator import Accelerator, Kernel
from coxcompile.runtime.buffers import mutated_inputs, stream_of
from coxcompile.runtime.device_copies import DeviceCopies
from coxcompile.runtime.execution import Execution
from coxcompile.runtime.expert_store import ExpertStore
from coxcompile.runtime.fetched_weights import FetchedWeights
from coxcompile.runtime.kernels.rows import add_rows_, pack_rows
from coxcompile.runtime.node_seconds import chosen_experts_seconds, partition_seconds

Values = dict[Node, Any]

_OF_EXPERTS = (
    *(instructions.stage_expert, instructions.run_experts),
    *(instructions.pack_rows, instructions.run_cpu_experts),
)


# Results in place, and views.
_STAND_FOR_OTHERS = (
    *(instructions.run_experts, instructions.add_rows, torch.ops.aten.slice.Tensor),
)


class CoexecutionError(RuntimeError):
    """A call of a co-execution graph failed; ``node`` is the name of the node that did."""

    def __init__(self, node: str, reason: BaseException) -> None:
        self.node = node
        super().__init__(f"node {node} failed: {type(reason).__name__}: {reason}")


class Executor:
    """A scheduled graph with everything it needs on the accelerator.

    Args:
        graph_module: as the pass schedule left it, and verify proved it.
        kernels: for each partition by name what runs it.
        store: its experts.
        hardware: what nodes are made to last like, on an accelerator that is throttled.
    """

    def __init__(
        self,
        graph_module: GraphModule,
        kernels: Mapping[str, Kernel],
        accelerator: Accelerator,
        store: ExpertStore,
        hardware: HardwareSpec | None,
    ) -> None:
        self.graph_module = graph_module
        self.store = store
        self.accelerator = accelerator
        self._kernels = kernels
        self._hardware = hardware
        self._copies = DeviceCopies(accelerator)
        self._fetched = FetchedWeights(accelerator, graph_module, store)
        self._pinned: dict[Node, Any] = {}
        self._returned = self._find_returned()
        self._inputs = graph_module.graph.find_nodes(op="placeholder")
        self._steps = [(node, self._step_of(node)) for node in graph_module.graph.nodes]
        self._preparations = self._find_preparations()
        self._seconds = self._partition_seconds()
        self._mutated = [
            written
            for node in graph_module.graph.find_nodes(op="call_module")
            for argument in mutated_inputs(graph_module, node)
            if (written := self._input_of(argument)) is not None
        ]

    def __call__(self, *inputs: Any) -> Any:
        """Run on the inputs of the graph.

        Raises:
            CoexecutionError: a node failed. Nothing is left running or held; the next call works.
        """
        return self.run(inputs)[0]

    def run(
        self, inputs: Sequence[Any], *, record: bool = False, serialised: bool = False
    ) -> tuple[Any, Execution | None]:
        """As a call; on request with what every node took, or one node after the other."""
        values: Values = dict(zip(self._inputs, inputs, strict=True))
        events: dict[int, torch.Event] = {}
        node = self._inputs[0]
        try:
            # What outlives the call may be written to by calls outside of inference mode.
            with torch.inference_mode(False), torch.no_grad():
                for node, prepare in self._preparations:
                    prepare(node, values)
            if record:
                self.accelerator.start_recording()
            begin = time.perf_counter()
            with torch.no_grad():
                for node, step in self._steps:
                    step(node, values, events)
                    if serialised:
                        self.accelerator.synchronize()
            end = time.perf_counter()
        except Exception as error:
            name, reason = self._stop(values) or (node.name, error)
            # Frames of the traceback hold device tensors for as long as the error is kept.
            traceback.clear_frames(error.__traceback__)
            raise CoexecutionError(name, reason) from reason
        except BaseException:
            self._stop(values)
            raise
        execution = None
        if record:
            spans, traffic = self.accelerator.take_recording()
            execution = Execution(begin, end, tuple(spans), traffic)
        self._mark_mutated(values)
        return values[self.graph_module.graph.output_node()], execution

    def release(self) -> None:
        """Give all of the accelerator's memory back, until the next call."""
        self.store.release()
        self._copies.release()
        self._fetched.release()

    def _find_preparations(self) -> list[tuple[Node, Callable[[Node, Values], None]]]:
        """What copies before the call begins, each with the node that it is for."""
        nodes = list(self.graph_module.graph.nodes)
        copied = (instructions.device_weight, instructions.device_cache)
        experts = [(node, self._prepare_experts) for node in nodes if node.target in _OF_EXPERTS]
        return experts[:1] + [(n, self._prepare_copy) for n in nodes if n.target in copied]

    def _prepare_experts(self, node: Node, values: Values) -> None:
        by_name = {given.name: value for given, value in values.items()}
        self.store.prepare(
            [
                tuple(None if name is None else by_name[name] for name in layer.inputs)
                for layer in self.store.layers
            ]
        )

    def _prepare_copy(self, node: Node, values: Values) -> None:
        host = self._host_value(node.args[0], values)  # type: ignore[arg-type]
        constant = node.target is instructions.device_weight
        values[node] = self._copies.get(node.name, host, constant=constant)

    def _host_value(self, node: Node, values: Values) -> Tensor:
        if node.op == "get_attr":
            return getattr(self.graph_module, str(node.target))  # type: ignore[no-any-return]
        if node.op == "placeholder":
            return values[node]  # type: ignore[no-any-return]
        source = self._host_value(node.args[0], values)  # type: ignore[arg-type]
        return node.target(source, *node.args[1:])  # type: ignore[no-any-return,operator]

    def _input_of(self, node: Node) -> Node | None:
        while node.op == "call_function":
            node = node.all_input_nodes[0]
        return node if node.op == "placeholder" else None

    def _mark_mutated(self, values: Values) -> None:
        for node in self._mutated:
            host = values[node]
            if not host.is_inference():
                torch.autograd.graph.increment_version(host)
        for node, _ in self._steps:
            if node.target is instructions.device_cache:
                self._copies.mark_current(node.name, self._host_value(node.args[0], values))

    def _stop(self, values: Values) -> tuple[str, BaseException] | None:
        """Let nothing run on or be held; what failed first on a stream, if anything did.

        Copies on the accelerator go too: a cache's may differ from the host's by now.
        """
        first = self.accelerator.take_error()
        values.clear()
        self.release()
        return first

    def _partition_seconds(self) -> dict[Node, float]:
        if self._hardware is None:
            return {}
        assert self._hardware.gpu is not None
        units = {"gpu": self._hardware.gpu, "cpu": self._hardware.cpu}
        return {
            node: partition_seconds(
                getattr(self.graph_module, str(node.target)).graph, units[node.meta["device"]]
            )
            for node in self.graph_module.graph.find_nodes(op="call_module")
        }

    def _step_of(self, node: Node) -> Callable[[Node, Values, dict[int, torch.Event]], None]:
        if node.op == "call_module":
            asynchronous = node.meta["device"] == "gpu"
            return self._on_stream(self._partition) if asynchronous else self._host_partition
        steps: dict[Any, Callable[[Node, Values], None]] = {
            instructions.transfer_start: self._transfer,
            instructions.transfer_rows_start: self._transfer_rows,
            instructions.stage_expert: self._stage_expert,
            instructions.fetch_expert: self._fetch_expert,
            instructions.stage_weights: self._stage_weights,
            instructions.fetch_weights: self._fetch_weights,
            instructions.new_expert_output: self._new_expert_output,
            instructions.run_experts: self._run_experts,
            instructions.pack_rows: self._pack_rows,
            instructions.add_rows: self._add_rows,
        }
        if node.target in steps:
            return self._on_stream(steps[node.target])
        others: dict[Any, Callable[[Node, Values, dict[int, torch.Event]], None]] = {
            instructions.record_event: self._record,
            instructions.wait_event: self._wait,
            instructions.free: self._free,
            instructions.run_cpu_experts: self._run_cpu_experts,
            instructions.device_weight: _nothing,
            instructions.device_cache: _nothing,
        }
        if node.target in others:
            return others[node.target]
        return {"placeholder": _nothing, "output": self._output}.get(node.op, self._view)

    def _on_stream(
        self, step: Callable[[Node, Values], None]
    ) -> Callable[[Node, Values, dict[int, torch.Event]], None]:
        def run(node: Node, values: Values, events: dict[int, torch.Event]) -> None:
            with self.accelerator.streams[stream_of(node)]:  # type: ignore[index]
                step(node, values)

        return run

    def _arguments(self, node: Node, values: Values) -> tuple[Any, ...]:
        return torch.fx.node.map_arg(node.args, values.__getitem__)

    def _view(self, node: Node, values: Values, events: dict[int, torch.Event]) -> None:
        if node.op == "get_attr":
            values[node] = self._host_value(node, values)
        else:
            values[node] = node.target(*self._arguments(node, values))  # type: ignore[operator]

    def _output(self, node: Node, values: Values, events: dict[int, torch.Event]) -> None:
        values[node] = self._arguments(node, values)[0]

    def _partition(self, node: Node, values: Values) -> None:
        arguments = self._arguments(node, values)
        size = node.meta["workspace"]
        # Its bytes count while the kernel is started, as a caching allocator's would.
        workspace = torch.empty(size, dtype=torch.uint8, device=self.accelerator.device)
        values[node] = self.accelerator.call(
            self._kernels[str(node.target)],
            arguments,
            node.meta["val"],
            node.name,
            self._seconds.get(node, 0.0),
        )
        del workspace

    def _host_partition(self, node: Node, values: Values, events: dict[int, torch.Event]) -> None:
        arguments = self._arguments(node, values)
        values[node] = self.accelerator.host(
            lambda: self._kernels[str(node.target)](*arguments),
            node.name,
            self._seconds.get(node, 0.0),
        )

    def _transfer(self, node: Node, values: Values) -> None:
        source = values[node.args[0]]  # type: ignore[index]
        value = node.meta["val"]
        if node.args[1] == "cpu":
            destination = self._pinned_for(node, value)
        else:
            destination = _empty(value, self.accelerator.device)
            if node.meta["may_be_empty"] and _is_zero(source):
                self.accelerator.launch(_zero, [destination], node.name)
                values[node] = destination
                return
            pinned = self._pinned_for(node, value)
            source = pinned.copy_(source)
        self.accelerator.copy([(destination, source)], node.name)
        values[node] = destination

    def _transfer_rows(self, node: Node, values: Values) -> None:
        rows = values[node.args[0]]  # type: ignore[index]
        if node.args[1] == "cpu":
            count, _, *packed = rows
            pinned_count, _, *pinned = self._pinned_for(node, node.meta["val"])
            pairs = list(zip(pinned, packed, strict=True))
            self.accelerator.copy_rows(pairs, count, [(pinned_count, count)], node.name)
            values[node] = (pinned_count, *pinned)
            return
        results, count = rows
        pinned = self._pinned_for(node, node.meta["val"])
        pinned[: len(results)] = results
        destination = _empty(node.meta["val"], self.accelerator.device)
        self.accelerator.copy_rows([(destination, pinned)], count, [], node.name)
        values[node] = destination

    def _pinned_for(self, node: Node, value: Any) -> Any:
        """Pinned memory that a transfer uses in every call; new memory for what is returned."""
        if node in self._pinned:
            return self._pinned[node]
        if isinstance(value, tuple):
            pinned: Any = tuple(self.accelerator.pinned(part) for part in value)
        else:
            pinned = self.accelerator.pinned(value)
        if node not in self._returned:
            self._pinned[node] = pinned
        return pinned

    def _find_returned(self) -> set[Node]:
        """The nodes whose memory a result of the call may be in."""
        found: set[Node] = set()
        ahead = [self.graph_module.graph.output_node()]
        while ahead:
            node = ahead.pop()
            if node not in found and node.target is not instructions.transfer_start:
                ahead += node.all_input_nodes
            found.add(node)
        return found

    def _stage_expert(self, node: Node, values: Values) -> None:
        place, layer, rank, *_ = node.args
        host = [values[weight] for weight in node.args[3:]]  # type: ignore[index]
        expert = self.store.expert(layer, rank)  # type: ignore[arg-type]
        pinned = self._fetched.expert_place(place)  # type: ignore[arg-type]

        @torch.inference_mode()
        def stage() -> None:
            for destination, weight in zip(pinned, host, strict=True):
                destination.copy_(weight[expert])

        self.accelerator.host_callback(stage, node.name)
        values[node] = pinned

    def _fetch_expert(self, node: Node, values: Values) -> None:
        pinned, slot = values[node.args[0]], node.args[1]  # type: ignore[index]
        pairs = list(zip(self.store.slot(slot), pinned, strict=True))  # type: ignore[arg-type]
        self.accelerator.copy(pairs, node.name)
        values[node] = None

    def _stage_weights(self, node: Node, values: Values) -> None:
        host = [values[parameter] for parameter in node.args[1:]]  # type: ignore[index]
        pinned = self._fetched.place(node.args[0], host)  # type: ignore[arg-type]

        @torch.inference_mode()
        def stage() -> None:
            for destination, parameter in zip(pinned, host, strict=True):
                destination.copy_(parameter)

        self.accelerator.host_callback(stage, node.name)
        values[node] = pinned

    def _fetch_weights(self, node: Node, values: Values) -> None:
        pinned = values[node.args[0]]  # type: ignore[index]
        places = self._fetched.weights_buffer(node.args[1], pinned)  # type: ignore[arg-type]
        self.accelerator.copy(list(zip(places, pinned, strict=True)), node.name)
        values[node] = places

    def _new_expert_output(self, node: Node, values: Values) -> None:
        values[node] = _empty(node.meta["val"], self.accelerator.device)
        self.accelerator.launch(_zero, [values[node]], node.name)

    def _run_experts(self, node: Node, values: Values) -> None:
        output, hidden_states, expert_ids, routing_weights = (
            values[argument]  # type: ignore[index]
            for argument in node.args[:4]
        )
        number, table = node.args[4:6]
        layer = self.store.layers[number]  # type: ignore[index]
        unit = self._hardware.gpu if self._hardware else None

        def run(*arguments: Any) -> float | None:
            torch.ops.coxmoe.experts_subset_(*arguments, **layer.arguments)
            if unit is None or not self.accelerator.throttled:
                return None
            _, hidden, ids, _, slots, *_ = arguments
            return chosen_experts_seconds(ids, slots, hidden, layer, unit)

        tensors = (output, hidden_states, expert_ids, routing_weights)
        slots = self.store.table(number, table)  # type: ignore[arg-type]
        self.accelerator.launch(run, [*tensors, slots, *self.store.arena], node.name)
        values[node] = output

    def _pack_rows(self, node: Node, values: Values) -> None:
        tokens = [values[argument] for argument in node.args[:3]]  # type: ignore[index]
        slots = self.store.cpu_table(node.args[3], on_host=False)  # type: ignore[arg-type]
        values[node] = tuple(
            self.accelerator.call(pack_rows, [*tokens, slots], node.meta["val"], node.name, 0.0)
        )

    def _run_cpu_experts(self, node: Node, values: Values, events: dict[int, torch.Event]) -> None:
        rows, number, *weights = self._arguments(node, values)
        layer = self.store.layers[number]
        count = int(rows[0])
        hidden_states, expert_ids, routing_weights = (part[:count] for part in rows[1:])
        slots = self.store.cpu_table(number, on_host=True)
        output = torch.zeros(hidden_states.shape, dtype=torch.float32)
        seconds = 0.0
        if self._hardware is not None and self.accelerator.throttled:
            unit = self._hardware.cpu
            seconds = chosen_experts_seconds(expert_ids, slots, hidden_states, layer, unit)

        tensors = (output, hidden_states, expert_ids, routing_weights)

        def run() -> Tensor:
            torch.ops.coxmoe.experts_subset_(*tensors, slots, *weights, **layer.arguments)
            return output.to(hidden_states.dtype)

        results = self.accelerator.host(run, node.name, seconds)
        values[node] = (results, torch.tensor([count]))

    def _add_rows(self, node: Node, values: Values) -> None:
        output, rows, results = (values[argument] for argument in node.args)  # type: ignore[index]
        self.accelerator.launch(add_rows_, [output, results, rows[1], rows[0]], node.name)
        values[node] = output

    def _record(self, node: Node, values: Values, events: dict[int, torch.Event]) -> None:
        event = torch.Event(self.accelerator.device)
        event.record(self.accelerator.streams[stream_of(node)])  # type: ignore[index]
        events[node.args[0]] = event  # type: ignore[index]

    def _wait(self, node: Node, values: Values, events: dict[int, torch.Event]) -> None:
        event = events[node.args[0]]  # type: ignore[index]
        stream = stream_of(node)
        if stream == "host":
            event.synchronize()
        else:
            self.accelerator.streams[stream].wait_event(event)  # type: ignore[index]

    def _free(self, node: Node, values: Values, events: dict[int, torch.Event]) -> None:
        freed = node.args[0]
        self._forget(freed, values)  # type: ignore[arg-type]

    def _forget(self, node: Node, values: Values) -> None:
        """A value, and all that stands for it or holds it."""
        values.pop(node, None)
        for user in node.users:
            if user.target in _STAND_FOR_OTHERS and user.args[0] is node:
                self._forget(user, values)
        if node.args and isinstance(node.args[0], Node) and node.args[0].op == "call_module":
            partition = node.args[0]
            results = values.get(partition)
            if results is not None:
                results[node.args[1]] = None


def _nothing(node: Node, values: Values, events: dict[int, torch.Event]) -> None:
    """Inputs and what was prepared before the call."""


def _zero(output: Tensor) -> None:
    output.zero_()


def _is_zero(cache: Tensor) -> bool:
    """Looks at the first position first, which every cache in use has filled."""
    return cache.dim() > 2 and not (cache[..., :1, :].any() or cache.any())


def _empty(like: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(like.size(), like.stride(), dtype=like.dtype, device=device)
