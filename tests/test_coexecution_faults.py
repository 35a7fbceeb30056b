"""Whatever fails in a call: one error with the node's name, nothing held, the next call right."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from transformers import StaticCache

from coxcompile.backend import coxmoe
from coxcompile.planner.plan import Plan
from coxcompile.runtime import emulated, instructions
from coxcompile.runtime.buffers import stream_of
from coxcompile.runtime.executor import CoexecutionError, Executor
from coxcompile.runtime.instructions import INSTRUCTIONS
from coxcompile.runtime.session import Session
from tests import coexecution_cases
from tests.coexecution_cases import CACHE_LENGTH, emulated_options, mixed_plan, token_ids
from tests.models import build
from tests.numerics import relative_error

clean_device = coexecution_cases.clean_device_fixture

VRAM = 4 << 20
EXPERTS = 16
PLANS: dict[str, Plan] = {
    "attention on the CPU": mixed_plan(EXPERTS, 1),
    "caches and weights on both sides": mixed_plan(
        EXPERTS, 1, attention="gpu", kv_gpu_share=1.0, resident_share=0.5
    ),
}
PASSED_OVER = {
    # The pass schedule replaces it by events.
    instructions.transfer_wait,
}


class InjectedError(Exception):
    """What the tests raise."""


class Case:
    """A compiled decoding step, called without Dynamo, always from the same state of its cache."""

    def __init__(self, plan: Plan, *, record: bool = False) -> None:
        self.session = Session(record=record)
        self._of_others = emulated.statistics().allocated_bytes
        self._options = emulated_options(self.session, VRAM, plan)
        model = build("qwen3_moe", dtype=torch.float32, layers=1)
        cache = StaticCache(config=model.config, max_cache_len=CACHE_LENGTH)
        with torch.no_grad():
            model(input_ids=token_ids(4, 12), past_key_values=cache)
            step = torch.compile(model, backend=self._compile, fullgraph=True, dynamic=False)
            step(input_ids=token_ids(4, 1), past_key_values=cache)
        self.require_right()

    def _compile(self, graph_module: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            self._inputs = inputs
            self._at_first = [value.clone() for value in inputs]
            self._compiled = coxmoe(graph_module, inputs, options=self._options)
            results = graph_module(*inputs)
            self._expected = [value.clone() for value in (*results, *inputs)]
            return results

        return run

    def call(self) -> list[Tensor]:
        """What the step returns, and its inputs, some of which it changes."""
        with torch.no_grad():
            for value, before in zip(self._inputs, self._at_first, strict=True):
                if not torch.equal(value, before):
                    value.copy_(before)
            return [*self._compiled(*self._inputs), *self._inputs]

    @property
    def executor(self) -> Executor:
        return self.session.executors[0]

    def fails(self) -> CoexecutionError:
        """The error of a call, which leaves nothing behind, and after which a call is right."""
        with pytest.raises(CoexecutionError) as caught:
            self.call()
        self.require_idle()
        return caught.value

    def require_idle(self) -> None:
        torch.accelerator.synchronize()
        for stream in self.executor.accelerator.streams.values():
            assert stream.query()
        assert emulated.take_error() is None
        assert emulated.statistics().allocated_bytes == self._of_others

    def require_right(self) -> None:
        assert max(map(relative_error, self.call(), self._expected)) < 1e-5


@pytest.fixture(name="case", params=PLANS, scope="module")
def case_fixture(request: pytest.FixtureRequest) -> Iterator[Case]:
    emulated.load()
    with pytest.MonkeyPatch.context() as patch:
        coexecution_cases.leave_partitions_to_eager(patch)
        case = Case(PLANS[request.param])
        yield case
        case.session.release()
        assert emulated.statistics().allocated_bytes == 0


def nodes_of(executor: Executor) -> list[Node]:
    """All that does something: neither inputs, nor views, nor what is prepared before the call."""
    return [node for node in executor.graph_module.graph.nodes if stream_of(node) is not None]


@contextlib.contextmanager
def replaced_step(
    executor: Executor, node: Node, wrap: Callable[[Callable[..., None]], Callable[..., None]]
) -> Iterator[None]:
    """Carries out one node in another way."""
    for steps in (executor._preparations, executor._steps):
        for position, (other, step) in enumerate(steps):
            prepared_elsewhere = steps is executor._steps and step.__name__ == "_nothing"
            if other is node and not prepared_elsewhere:
                steps[position] = (node, wrap(step))
                try:
                    yield
                finally:
                    steps[position] = (node, step)
                return
    raise AssertionError(f"{node} is never carried out")


def raising(step: Callable[..., None]) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        raise InjectedError

    return run


def fail() -> None:
    raise InjectedError


def test_the_plans_have_nodes_of_every_kind() -> None:
    found = set()
    for plan in PLANS.values():
        with pytest.MonkeyPatch.context() as patch:
            coexecution_cases.leave_partitions_to_eager(patch)
            case = Case(plan)
        for node in case.executor.graph_module.graph.nodes:
            found.add((node.target, stream_of(node)) if node.op == "call_function" else node.op)
        found |= {(node.op, node.meta.get("device")) for node in nodes_of(case.executor)}
        case.session.release()
    targets = {kind[0] for kind in found if isinstance(kind, tuple)}
    assert set(INSTRUCTIONS) - targets == PASSED_OVER
    assert {("call_module", "gpu"), ("call_module", "cpu")} <= found
    for transfer in (instructions.transfer_start, instructions.transfer_rows_start):
        assert {(transfer, "host_to_device"), (transfer, "device_to_host")} <= found


def test_an_error_while_a_node_is_issued(case: Case) -> None:
    prepared = [node for node, _ in case.executor._preparations]
    for node in (*nodes_of(case.executor), *prepared):
        with replaced_step(case.executor, node, raising):
            error = case.fails()
        assert error.node == node.name
        assert isinstance(error.__cause__, InjectedError)
        assert node.name in str(error)
        assert "InjectedError" in str(error)
        case.require_right()


def test_an_error_on_a_stream(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels and callbacks raise; before a copy something that has its name does."""
    accelerator = case.executor.accelerator
    failing = ""
    original = {
        name: getattr(accelerator, name)
        for name in ("call", "launch", "copy", "copy_rows", "host", "host_callback")
    }

    def call(kernel: Any, arguments: Any, values: Any, label: str, seconds: float) -> Any:
        chosen = (lambda *_: fail()) if label == failing else kernel
        return original["call"](chosen, arguments, values, label, seconds)

    def launch(kernel: Any, arguments: Any, label: str, seconds: float = 0.0) -> None:
        # ``call`` launches what it is given, under the same label.
        original["launch"](
            (lambda *_: fail()) if label == failing else kernel, arguments, label, seconds
        )

    def copy(*arguments: Any) -> None:
        if arguments[-1] == failing:
            emulated.enqueue(fail, failing)
        original["copy"](*arguments)

    def copy_rows(*arguments: Any) -> None:
        if arguments[-1] == failing:
            emulated.enqueue(fail, failing)
        original["copy_rows"](*arguments)

    def host(function: Any, label: str, seconds: float) -> Any:
        return original["host"](fail if label == failing else function, label, seconds)

    def host_callback(function: Any, label: str) -> None:
        original["host_callback"](fail if label == failing else function, label)

    for replacement in (call, launch, copy, copy_rows, host, host_callback):
        monkeypatch.setattr(accelerator, replacement.__name__, replacement)
    without_work = (instructions.record_event, instructions.wait_event, instructions.free)
    nodes = [node for node in nodes_of(case.executor) if node.target not in without_work]
    assert len(nodes) > 20
    for node in nodes:
        failing = node.name
        error = case.fails()
        assert error.node == node.name
        assert isinstance(error.__cause__, InjectedError)
        failing = ""
        case.require_right()


def test_no_memory_for_a_node(case: Case) -> None:
    """At every node in turn nothing more can be allocated; those that allocate something fail."""
    failed = 0
    prepared = [node for node, _ in case.executor._preparations]
    for node in (*prepared, *nodes_of(case.executor)):
        case.session.release()
        with replaced_step(case.executor, node, without_free_memory):
            error = error_of(case.call)
        if error is not None:
            failed += 1
            assert error.node == node.name
            assert isinstance(error.__cause__, torch.OutOfMemoryError)
            case.require_idle()
        case.require_right()
    assert failed > 10


def error_of(call: Callable[[], Any]) -> CoexecutionError | None:
    try:
        call()
    except CoexecutionError as error:
        return error
    return None


def without_free_memory(step: Callable[..., None]) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        emulated.configure(memory_bytes=emulated.statistics().allocated_bytes)
        try:
            step(*arguments)
        finally:
            emulated.configure(memory_bytes=VRAM)

    return run


def test_too_little_memory(case: Case) -> None:
    emulated.reset_statistics()
    case.require_right()
    peak = emulated.statistics().peak_bytes
    for memory_bytes in range(0, peak, peak // 24):
        case.session.release()
        emulated.configure(memory_bytes=memory_bytes)
        error = case.fails()
        assert isinstance(error.__cause__, torch.OutOfMemoryError)
        assert str(memory_bytes) in str(error)
        emulated.configure(memory_bytes=VRAM)
        case.require_right()
    emulated.configure(memory_bytes=peak)
    case.require_right()


def test_an_interrupt_stops_what_runs(case: Case) -> None:
    def interrupted(step: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            raise KeyboardInterrupt

        return run

    nodes = nodes_of(case.executor)
    with (
        replaced_step(case.executor, nodes[len(nodes) // 2], interrupted),
        pytest.raises(KeyboardInterrupt),
    ):
        case.call()
    case.require_idle()
    case.require_right()


def test_a_failed_call_is_not_recorded() -> None:
    with pytest.MonkeyPatch.context() as patch:
        coexecution_cases.leave_partitions_to_eager(patch)
        case = Case(PLANS["attention on the CPU"], record=True)
    recorded = len(case.session.executions)
    with replaced_step(case.executor, nodes_of(case.executor)[-1], raising):
        case.fails()
    assert len(case.session.executions) == recorded
    case.require_right()
    assert len(case.session.executions) == recorded + 1
    case.session.release()
