"""Schedules have what they need and no more: without any one wait, event or edge they are wrong."""

import operator
import random
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch.fx import Graph, GraphModule, Node

from coxcompile.options import Options
from coxcompile.passes import PassContext
from coxcompile.passes.happens_before import HappensBefore, ScheduleError
from coxcompile.passes.verify import verify
from coxcompile.runtime import emulated, instructions
from coxcompile.runtime.executor import CoexecutionError
from tests import emulated_cases
from tests.schedule_cases import CASES, VRAM, scheduled
from tests.schedule_mutants import (
    KINDS,
    event_graph,
    is_ordered,
    mutants,
    producer_of,
    without_a_wait,
)

device_fixture = emulated_cases.device_fixture


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tensors this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CASES)
def test_the_schedule_itself_passes(name: str) -> None:
    case = scheduled(name)
    assert verify(case.graph_module, case.context) is case.graph_module


@pytest.mark.parametrize("share", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_verify_catches_every_mutant(share: int) -> None:
    caught: Counter[str] = Counter()
    survivors = []
    for name in CASES:
        case = scheduled(name)
        for mutant in list(mutants(case))[::share]:
            try:
                verify(mutant.build(case), case.context)
            except ScheduleError:
                caught[mutant.kind] += 1
            else:
                survivors.append((name, mutant.kind, mutant.about))
    assert survivors == []
    assert caught.total() >= 500
    assert len(caught) >= len(KINDS)


def test_mutants_without_a_wait_go_wrong() -> None:
    """What is no longer waited for is delayed: NaN, other outputs or an error for most.

    Not for all: an expert that no token chose may come late.
    """
    shown: Counter[str] = Counter()
    for name in CASES:
        case = scheduled(name)
        expected = case.run(case.executor())
        by_name = {node.name: node for node in case.nodes}
        for mutant in list(without_a_wait(case))[::12]:
            late = producer_of(case.nodes, by_name[mutant.about])
            emulated.delay_label(late.name, 0.02)
            assert all(map(torch.equal, case.run(case.executor()), expected))
            try:
                outputs = case.run(case.executor(mutant.build(case)))
            except CoexecutionError:
                shown["error"] += 1
            else:
                shown[_difference(outputs, expected)] += 1
            emulated.take_error()
            emulated.delay_label(late.name, 0)
    assert shown.total() >= 50
    assert shown["NaN"] > shown.total() / 3
    assert shown["NaN"] + shown["other values"] + shown["error"] > shown.total() / 2


def _difference(outputs: list[torch.Tensor], expected: list[torch.Tensor]) -> str:
    if any(output.isnan().any() for output in outputs):
        return "NaN"
    return "none" if all(map(torch.equal, outputs, expected)) else "other values"


@pytest.mark.parametrize("name", ["coalesced decode", "flexgen", "caches on both sides"])
def test_happens_before_of_schedules(name: str) -> None:
    case = scheduled(name)
    _compare(case.graph_module, random.Random(name).sample(case.nodes, 60))


@pytest.mark.parametrize("seed", range(40))
def test_happens_before_of_random_graphs(seed: int) -> None:
    draw = random.Random(seed)
    graph = Graph()
    events: list[int] = []
    for _ in range(40):
        kind = draw.choice(["run", "run", "record", "wait"])
        if kind == "wait" and events:
            node = graph.call_function(instructions.wait_event, (draw.choice(events),))
        elif kind == "record":
            events.append(len(events))
            node = graph.call_function(instructions.record_event, (events[-1],))
        else:
            node = graph.call_function(operator.pos, (0,))
        node.meta["stream"] = draw.choice(instructions.STREAMS)
    _compare(GraphModule({}, graph), list(graph.nodes))


def _compare(graph_module: GraphModule, nodes: list[Node]) -> None:
    happens_before = HappensBefore(graph_module)
    order = event_graph(list(graph_module.graph.nodes))
    place = {node: number for number, node in enumerate(graph_module.graph.nodes)}
    answers = set()
    for earlier in nodes:
        for later in nodes:
            if place[earlier] < place[later]:
                answer = happens_before(earlier, later)
                assert answer == is_ordered(order, earlier, later), (earlier, later)
                answers.add(answer)
    assert answers == {True, False}


def test_an_input_must_not_be_read_after_it_was_changed() -> None:
    """Of what no mutant of a real schedule shows, since the nodes between would move too."""
    graph, inner = Graph(), Graph()
    given = inner.placeholder("given")
    inner.call_function(torch.ops.aten.copy_.default, (given, given))
    inner.output(())
    cache = graph.placeholder("cache")
    halves = [
        graph.call_function(torch.ops.aten.slice.Tensor, (cache, 0, n, n + 2)) for n in (0, 2)
    ]
    changed = graph.call_module("partition", (halves[0],))
    changed.meta = {"val": (), "device": "cpu"}
    graph.output(())
    graph_module = GraphModule({"partition": GraphModule({}, inner)}, graph)
    context = PassContext(Options(), [], [], vram=VRAM)
    for source, is_right in ((halves[1], True), (halves[0], False), (cache, False)):
        with graph.inserting_after(changed):
            read = graph.call_function(instructions.transfer_start, (source, "gpu"))
        read.meta = {"val": None, "device": "gpu", "stream": "host"}
        if is_right:
            verify(graph_module, context)
        else:
            with pytest.raises(ScheduleError, match="has changed"):
                verify(graph_module, context)
        graph.erase_node(read)
