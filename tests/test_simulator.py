"""The simulator: rules on small plans, agreement with the closed form on many."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from coxcompile.hardware import HardwareSpec, Link, Processor
from coxcompile.planner.cost_model import predict, predict_stage
from coxcompile.planner.event_queue import Task, run_tasks
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import ExpertSplit, Plan, Stage, StagePlan
from coxcompile.planner.simulation import Simulation
from coxcompile.planner.simulator import simulate, simulate_stage
from coxcompile.planner.workload import uniform_workload
from tests.simulator_cases import Case, cases

QWEN = ModelSpec(
    name="qwen3-30b-a3b",
    **{"layers": 48, "hidden": 2048, "query_heads": 32, "kv_heads": 4, "head_dim": 128},
    **{"experts": 128, "top_k": 8, "expert_dim": 768, "vocabulary": 151936},
)
MIXTRAL = ModelSpec(
    name="mixtral-8x7b",
    **{"layers": 32, "hidden": 4096, "query_heads": 32, "kv_heads": 8, "head_dim": 128},
    **{"experts": 8, "top_k": 2, "expert_dim": 14336, "vocabulary": 32000},
)
LINK = Link(bytes_per_second=25e9, latency_seconds=1e-5)
MACHINE = HardwareSpec(
    name="like the paper's system I",
    source="data sheets",
    cpu=Processor(
        name="cpu",
        flops_per_second=144e12,
        memory_bytes=512 * 10**9,
        memory_bytes_per_second=300e9,
        memory_efficiency=0.8,
        launch_seconds=2e-5,
    ),
    gpu=Processor(
        name="gpu",
        flops_per_second=364e12,
        memory_bytes=48 * 10**9,
        memory_bytes_per_second=960e9,
        memory_efficiency=0.85,
        launch_seconds=1e-5,
    ),
    host_to_device=LINK,
    device_to_host=LINK,
)
WORKLOAD = uniform_workload(512, 1320, 128)


def stage_plan(model: ModelSpec, split: tuple[int, int, int], **changes: object) -> StagePlan:
    resident, migrating, cpu = split
    experts = ExpertSplit(resident=resident, migrating=migrating, cpu=cpu)
    plan = StagePlan(
        qkv="gpu",
        attention="gpu",
        output="gpu",
        micro_batch=64,
        block=512,
        coalesced=True,
        experts=(experts,) * model.moe_layers,
        staging_experts=2,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def error(simulation: Simulation, predicted_seconds: float) -> float:
    return abs(predicted_seconds - simulation.step_seconds) / simulation.step_seconds


@pytest.mark.parametrize("stage", ["prefill", "decode"])
@pytest.mark.parametrize("attention", ["gpu", "cpu"])
@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize(
    ("model", "split"),
    [
        (QWEN, (40, 10, 78)),
        (QWEN, (60, 68, 0)),
        (QWEN, (20, 0, 108)),
        (MIXTRAL, (1, 2, 5)),
        (MIXTRAL, (2, 6, 0)),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_closed_form_agrees_on_real_models(
    model: ModelSpec, split: tuple[int, int, int], coalesced: bool, attention: str, stage: Stage
) -> None:
    slots = 2 if coalesced else 2 * split[1]
    plan = stage_plan(model, split, coalesced=coalesced, attention=attention, staging_experts=slots)
    simulation = simulate_stage(plan, stage, model, MACHINE, WORKLOAD)
    prediction = predict_stage(plan, stage, model, MACHINE, WORKLOAD)
    assert error(simulation, prediction.step_seconds) <= 0.1
    assert simulation.seconds == pytest.approx(prediction.seconds, rel=0.1)
    for resource, seconds in prediction.busy.items():
        share = seconds / prediction.seconds
        assert simulation.busy[resource] == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("stage", ["prefill", "decode"])
@pytest.mark.parametrize("attention", ["gpu", "cpu"])
@pytest.mark.parametrize(("model", "split"), [(QWEN, (60, 68, 0)), (MIXTRAL, (2, 6, 0))])
def test_layers_that_wait_for_their_weights_take_longer_and_agree(
    model: ModelSpec, split: tuple[int, int, int], attention: str, stage: Stage
) -> None:
    slots = 2 * split[1]
    plan = stage_plan(model, split, coalesced=False, attention=attention, staging_experts=slots)
    waiting = replace(plan, fetches_overlap=False)
    simulation = simulate_stage(waiting, stage, model, MACHINE, WORKLOAD)
    predicted = predict_stage(waiting, stage, model, MACHINE, WORKLOAD).step_seconds
    assert error(simulation, predicted) <= 0.1
    assert predicted > predict_stage(plan, stage, model, MACHINE, WORKLOAD).step_seconds


def test_closed_form_agrees_on_random_plans() -> None:
    """Of models of 2-4 layers, where what happens once a step weighs most, nearly all."""
    errors: list[float] = []

    @settings(
        max_examples=400,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(most_dense_layers=1))
    def collect(case: Case) -> None:
        simulation = simulate_stage(*case.arguments)
        errors.append(error(simulation, predict_stage(*case.arguments).step_seconds))

    collect()
    assert np.quantile(errors, 0.98) <= 0.1
    assert max(errors) <= 0.35


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_every_resource_does_one_thing_at_a_time_and_micro_batches_keep_their_order(
    case: Case,
) -> None:
    simulation = simulate_stage(*case.arguments)
    by_resource: dict[str, list[tuple[float, float]]] = {}
    for task in simulation.tasks:
        assert task.end >= task.start
        by_resource.setdefault(task.resource, []).append((task.start, task.end))
    for spans in by_resource.values():
        spans.sort()
        for (_, end), (start, _) in pairwise(spans):
            assert start >= end - 1e-12
    for share in simulation.busy.values():
        assert -1e-9 <= share <= 1 + 1e-9
    operations = ("QKV projection", "attention", "output projection")
    order = {name: number for number, name in enumerate(operations)}
    chains: dict[tuple[object, ...], list[tuple[float, int]]] = {}
    for task in simulation.tasks:
        if task.name in order:
            key = (task.step, task.layer, task.micro_batch)
            chains.setdefault(key, []).append((task.start, order[task.name]))
    assert chains
    for chain in chains.values():
        assert [number for _, number in sorted(chain)] == [0, 1, 2]


def test_migrating_experts_are_fetched_into_free_slots_only_and_computed_after() -> None:
    model = replace(MIXTRAL, layers=3)
    plan = stage_plan(model, (2, 6, 0))
    simulation = simulate_stage(plan, "decode", model, MACHINE, WORKLOAD)
    fetched, computed = {}, {}
    for task in simulation.tasks:
        key = (task.step, task.layer, task.name.removeprefix("fetch of "))
        if task.name.startswith("fetch of "):
            start, _ = fetched.get(key, (task.start, 0.0))
            fetched[key] = (start, task.end)
        elif task.name.startswith("expert ") and int(task.name.split()[1]) >= 2:
            computed[key] = (task.start, task.end)
    assert len(fetched) == len(computed) == 2 * 3 * 6
    for key, (start, _) in computed.items():
        assert start >= fetched[key][1]
    for at, _ in fetched.values():
        held = [k for k, (start, _) in fetched.items() if start <= at < computed[k][1]]
        assert len(held) <= 2
    end_of_layer = max(task.end for task in simulation.tasks if (task.step, task.layer) == (0, 0))
    assert fetched[(0, 1, "expert 2")][0] < end_of_layer


def test_a_window_of_layers_stands_for_all() -> None:
    plan = stage_plan(QWEN, (40, 10, 78), attention="cpu")
    whole = simulate_stage(plan, "decode", QWEN, MACHINE, WORKLOAD)
    window = simulate_stage(plan, "decode", QWEN, MACHINE, WORKLOAD, layers=6)
    assert len(whole.layers) == 48
    assert window.layers == (0, 9, 19, 28, 38, 47)
    assert window.step_seconds == pytest.approx(whole.step_seconds, rel=0.02)


def test_vram_stays_within_what_the_plan_is_said_to_need() -> None:
    plan = stage_plan(MIXTRAL, (1, 2, 5))
    simulation = simulate_stage(plan, "decode", MIXTRAL, MACHINE, WORKLOAD)
    use = predict_stage(plan, "decode", MIXTRAL, MACHINE, WORKLOAD).memory
    assert 0.9 * use.vram_bytes <= simulation.peak_vram_bytes <= use.vram_bytes * (1 + 1e-9)
    assert simulation.vram[0][1] < simulation.peak_vram_bytes


def test_trace_opens_in_perfetto(tmp_path: Path) -> None:
    model = replace(MIXTRAL, layers=3)
    stages = stage_plan(model, (1, 2, 5))
    plan = Plan(policy="test", model="m", hardware="h", prefill=stages, decode=stages)
    simulation = simulate(plan, model, MACHINE, WORKLOAD)
    simulation.save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    assert len(complete) == len(simulation.prefill.tasks) + len(simulation.decode.tasks)
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in complete)
    threads = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"gpu", "cpu", "host_to_device", "device_to_host"} <= threads
    assert any(event["ph"] == "C" for event in events)
    prediction = predict(plan, model, MACHINE, WORKLOAD)
    assert simulation.tokens_per_second == pytest.approx(prediction.tokens_per_second, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"staging_experts": 0}, "staging_experts is 0.*must be 1 or more"),
        ({"coalesced": False}, "staging_experts is 2.*must be 4 or more"),
        ({"experts": ()}, "experts has 0 splits"),
        ({"disk_share": 0.5}, "has none"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_says_why(
    changes: dict[str, object], message: str
) -> None:
    plan = stage_plan(MIXTRAL, (1, 2, 5), **changes)
    with pytest.raises(ValueError, match=message):
        simulate_stage(plan, "decode", MIXTRAL, MACHINE, WORKLOAD)


def task(name: str, seconds: float, **changes: object) -> Task:
    return Task(name=name, resource="link", seconds=seconds, step=0, layer=0, **changes)  # type: ignore[arg-type]


def test_what_is_urgent_interrupts_a_fetch_which_then_goes_on() -> None:
    fetch = task("fetch", 5.0, urgency=1, interruptible=True)
    wait = Task(name="wait", resource="gpu", seconds=2.0, step=0, layer=0)
    urgent = task("urgent", 1.0)
    wait.then(urgent)
    spans = run_tasks([fetch, wait, urgent], {}).spans
    found = [(span.task.name, span.start, span.end) for span in spans if span.task is not wait]
    assert found == [("fetch", 0.0, 2.0), ("urgent", 2.0, 3.0), ("fetch", 3.0, 6.0)]


def test_tasks_that_can_never_start_are_reported() -> None:
    with pytest.raises(RuntimeError, match="1 of 1 tasks can never start"):
        run_tasks([task("fetch", 1.0, takes="slots")], {"slots": 0})
