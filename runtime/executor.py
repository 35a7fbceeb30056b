"""Carrying out a scheduled co-execution graph, node by node, from the one host thread."""

import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from coxcompile.hardware import HardwareSpec
from coxcompile.runtime import instructions
from coxcompile.runtime.accelerator import Accelerator, Kernel
from coxcompile.runtime.buffers import mutated_inputs, stream_of
from coxcompile.runtime.device_copies import DeviceCopies
from coxcompile.runtime.execution import Execution
from coxcompile.runtime.expert_steps import ExpertSteps
from coxcompile.runtime.expert_store import ExpertStore
from coxcompile.runtime.fetched_weights import FetchedWeights
from coxcompile.runtime.node_seconds import partition_seconds
from coxcompile.runtime.transfers import Transfers
from coxcompile.runtime.values import Step, Values

_OF_EXPERTS = (
    *(instructions.stage_expert, instructions.run_experts),
    *(instructions.pack_rows, instructions.run_cpu_experts),
)

# Events say themselves which stream they are of, and memory which it was allocated on.
_NOT_ON_A_STREAM = (*(instructions.record_event, instructions.wait_event, instructions.free),)

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
        experts_kernel: computes the accelerator's experts, called as ``coxmoe::experts_subset_``.
        hardware: what nodes are made to last like, on an accelerator that is throttled.
    """

    def __init__(
        self,
        graph_module: GraphModule,
        kernels: Mapping[str, Kernel],
        accelerator: Accelerator,
        store: ExpertStore,
        experts_kernel: Kernel,
        hardware: HardwareSpec | None,
    ) -> None:
        self.graph_module = graph_module
        self.store = store
        self.accelerator = accelerator
        self._kernels = kernels
        self._hardware = hardware
        self._copies = DeviceCopies(accelerator)
        self._fetched = FetchedWeights(accelerator, graph_module, store)
        self._events: dict[int, torch.Event] = {}
        self._by_instruction: dict[Any, Step] = {
            **Transfers(accelerator, graph_module.graph).steps,
            **ExpertSteps(accelerator, store, self._fetched, experts_kernel, hardware).steps,
            instructions.record_event: self._record,
            instructions.wait_event: self._wait,
            instructions.free: self._free,
            instructions.device_weight: _nothing,
            instructions.device_cache: _nothing,
        }
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
        self._events.clear()
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
                    step(node, values)
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

    def _find_preparations(self) -> list[tuple[Node, Step]]:
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

    def _step_of(self, node: Node) -> Step:
        if node.op == "call_module":
            step: Step = self._partition if node.meta["device"] == "gpu" else self._host_partition
        elif node.target in self._by_instruction:
            step = self._by_instruction[node.target]
        else:
            others: dict[str, Step] = {"placeholder": _nothing, "output": self._output}
            step = others.get(node.op, self._view)
        return step if node.target in _NOT_ON_A_STREAM else self._on_stream(node, step)

    def _on_stream(self, node: Node, step: Step) -> Step:
        stream = stream_of(node)
        if stream in (None, "host"):
            return step

        def run(node: Node, values: Values) -> None:
            with self.accelerator.streams[stream]:
                step(node, values)

        return run

    def _arguments(self, node: Node, values: Values) -> tuple[Any, ...]:
        return torch.fx.node.map_arg(node.args, values.__getitem__)

    def _view(self, node: Node, values: Values) -> None:
        if node.op == "get_attr":
            values[node] = self._host_value(node, values)
        else:
            values[node] = node.target(*self._arguments(node, values))  # type: ignore[operator]

    def _output(self, node: Node, values: Values) -> None:
        values[node] = self._arguments(node, values)[0]

    def _partition(self, node: Node, values: Values) -> None:
        arguments = self._arguments(node, values)
        with self.accelerator.workspace(node.meta["workspace"]):
            values[node] = self.accelerator.call(
                self._kernels[str(node.target)],
                arguments,
                node.meta["val"],
                node.name,
                self._seconds.get(node, 0.0),
            )

    def _host_partition(self, node: Node, values: Values) -> None:
        arguments = self._arguments(node, values)
        values[node] = self.accelerator.host(
            lambda: self._kernels[str(node.target)](*arguments),
            node.name,
            self._seconds.get(node, 0.0),
        )

    def _record(self, node: Node, values: Values) -> None:
        event = torch.Event(self.accelerator.device)
        event.record(self.accelerator.streams[stream_of(node)])  # type: ignore[index]
        self._events[node.args[0]] = event  # type: ignore[index]

    def _wait(self, node: Node, values: Values) -> None:
        event = self._events[node.args[0]]  # type: ignore[index]
        stream = stream_of(node)
        if stream == "host":
            event.synchronize()
        else:
            self.accelerator.streams[stream].wait_event(event)  # type: ignore[index]

    def _free(self, node: Node, values: Values) -> None:
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


def _nothing(node: Node, values: Values) -> None:
    """Inputs and what was prepared before the call."""
