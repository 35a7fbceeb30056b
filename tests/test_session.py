"""A session: what it records, other hot experts between calls, memory given back."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coxcompile.planner.activation_map import ActivationMap
from coxcompile.runtime import emulated, instructions
from coxcompile.runtime.buffers import stream_of
from coxcompile.runtime.session import Session
from tests import coexecution_cases
from tests.coexecution_cases import emulated_options, mixed_plan, released, token_ids
from tests.models import build
from tests.numerics import relative_error

clean_device = coexecution_cases.clean_device_fixture
eager_partitions = coexecution_cases.eager_partitions_fixture

LAYERS, EXPERTS = 2, 16
VRAM = 4 << 20
WITHOUT_SPAN = (instructions.record_event, instructions.wait_event, instructions.free)


class Case:
    """A model with its compiled version, of one graph, in a session."""

    def __init__(self) -> None:
        self.session = Session(record=True)
        self.model: nn.Module = build("qwen3_moe", dtype=torch.float32, layers=LAYERS)
        plan = mixed_plan(EXPERTS, LAYERS)
        self.compiled = torch.compile(
            self.model,
            backend="coxmoe",
            fullgraph=True,
            dynamic=False,
            options=emulated_options(self.session, VRAM, plan),
        )

    def call(self, seed: int = 0) -> Tensor:
        ids = token_ids(4, 12, seed)
        with torch.no_grad():
            logits: Tensor = self.compiled(input_ids=ids, use_cache=False).logits
            expected = self.model(input_ids=ids, use_cache=False).logits
        assert relative_error(logits, expected) < 1e-5
        return logits


@pytest.fixture(name="case")
def case_fixture(eager_partitions: None) -> Iterator[Case]:
    case = Case()
    with released(case.session):
        yield case


def map_of(hottest: int, *, layers: int = LAYERS, experts: int = EXPERTS) -> ActivationMap:
    """Experts from ``hottest`` on, and then those before it, are the more popular ones."""
    counts = np.tile(np.roll(np.arange(experts, 0, -1), hottest), (layers, 1))
    names = tuple(f"layers.{layer}" for layer in range(layers))
    return ActivationMap(counts=counts, layers=names, model="tiny", tokens=1000, strategy="made up")


def test_a_recorded_call_has_a_span_for_each_node(case: Case) -> None:
    for seed in range(3):
        case.call(seed)
    graph = case.session.executors[0].graph_module.graph
    expected = {
        node.name: stream_of(node)
        for node in graph.nodes
        if stream_of(node) is not None and node.target not in WITHOUT_SPAN
    }
    assert len(case.session.executions) == 3
    for execution in case.session.executions:
        assert {span.node: span.stream for span in execution.spans} == expected
        assert len(execution.spans) == len(expected)
        assert execution.seconds > 0
        for span in execution.spans:
            assert execution.begin <= span.begin <= span.end
        ends = dict.fromkeys(expected.values(), 0.0)
        for span in sorted(execution.spans, key=lambda span: span.begin):
            if span.stream != "host":
                assert span.begin >= ends[span.stream]
                ends[span.stream] = span.end
        assert 0 < execution.traffic.device_to_host < execution.traffic.host_to_device
        assert 0 < execution.traffic.peak_bytes <= VRAM
        timeline = execution.timeline()
        assert {task.name for task in timeline} == set(expected)
        assert min(task.start for task in timeline) >= 0


def test_migrating_experts_cross_the_link_in_every_call_and_resident_ones_in_the_first(
    case: Case,
) -> None:
    case.session.record = False  # a recording begins to count when all is prepared
    layer_bytes = []
    for seed in range(3):
        emulated.reset_statistics()
        case.call(seed)
        layer_bytes.append(emulated.statistics().bytes_host_to_device)
    store = case.session.executors[0].store
    resident = sum(layer.split.resident * layer.expert_bytes for layer in store.layers)
    migrating = sum(layer.split.migrating * layer.expert_bytes for layer in store.layers)
    assert min(layer_bytes) > migrating
    assert max(layer_bytes[1:]) < layer_bytes[0] - resident


def test_nothing_is_recorded_unless_asked(case: Case) -> None:
    case.session.record = False
    case.call()
    assert case.session.executions == []
    case.session.record = True
    case.call()
    assert len(case.session.executions) == 1


def test_other_hot_experts_change_no_output_and_compile_nothing(case: Case) -> None:
    outputs = [case.call()]
    (executor,) = case.session.executors
    frames = dict(torch._dynamo.utils.counters["frames"])
    for hottest in (0, 5, 11):
        case.session.replace_hot_experts(map_of(hottest))
        outputs.append(case.call())
        resident = executor.store.layers[0].split.resident
        expected = tuple((hottest + rank) % EXPERTS for rank in range(resident))
        assert all(order[:resident] == expected for order in executor.store.orders)
    assert case.session.executors == [executor]
    assert dict(torch._dynamo.utils.counters["frames"]) == frames
    for output in outputs[1:]:
        assert relative_error(output, outputs[0]) < 1e-6


def test_only_experts_that_were_not_resident_are_copied(case: Case) -> None:
    case.session.record = False
    case.call()
    (executor,) = case.session.executors

    def bytes_to_device() -> int:
        emulated.reset_statistics()
        case.call()
        return emulated.statistics().bytes_host_to_device

    layers = executor.store.layers
    tables = sum(8 * EXPERTS * (len(layer.tables) + 1) for layer in layers)
    # By no place, by one, by two: so many of each layer's resident experts are new.
    for hottest, new in ((0, 0), (1, 1), (3, 2)):
        case.session.replace_hot_experts(map_of(hottest))
        first, then = bytes_to_device(), bytes_to_device()
        copied = new * LAYERS * layers[0].expert_bytes
        assert first - then == (copied + tables if new else 0)


def test_a_map_of_another_model_is_refused(case: Case) -> None:
    before = case.call()
    orders = list(case.session.executors[0].store.orders)
    for layers, experts in ((LAYERS - 1, EXPERTS), (LAYERS, EXPERTS + 1), (LAYERS, EXPERTS - 1)):
        with pytest.raises(ValueError, match="activation_map: it counts"):
            case.session.replace_hot_experts(map_of(3, layers=layers, experts=experts))
    assert case.session.executors[0].store.orders == orders
    assert torch.equal(case.call(), before)


def test_release_gives_all_memory_back_until_the_next_call(case: Case) -> None:
    for _ in range(2):
        case.call()
        assert emulated.statistics().allocated_bytes > 0
        case.session.release()
        assert emulated.statistics().allocated_bytes == 0


def test_another_vram_needs_another_session(case: Case) -> None:
    case.call()
    with pytest.raises(ValueError, match="a Session of its own"):
        case.session.accelerator("emulated", VRAM + 1, None)
