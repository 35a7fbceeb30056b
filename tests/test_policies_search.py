"""coxmoe and best: the search loses nothing, fits, and no better machine makes it slower."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coxcompile.hardware import HardwareSpec, Link, Processor
from coxcompile.planner.cost_model import predict, predict_stage
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import StagePlan
from coxcompile.planner.policies import POLICIES, make_plan
from coxcompile.planner.policies.best import best
from coxcompile.planner.policies.coxmoe import coxmoe, search, templates
from coxcompile.planner.policies.fitting import DoesNotFitError
from coxcompile.planner.policies.search import Problem
from coxcompile.planner.workload import uniform_workload
from tests.search_cases import FIGURES, better, machines, models
from tests.simulator_cases import routings, workloads


def all_plans(problem: Problem) -> list[StagePlan]:
    """Every plan of coxmoe's space with the same split in all layers, without any pruning."""
    experts = problem.model.experts
    plans = []
    for template in templates(problem, problem.workload.batch):
        for resident, cpu in itertools.product(range(experts + 1), repeat=2):
            if resident + cpu > experts or (template.staging_experts == 0) != (cpu == experts):
                continue
            splits = problem.splits(resident, cpu)
            staging = template.staging_experts if resident + cpu < experts else 0
            plans.append(replace(template, experts=splits, staging_experts=staging))
    return plans


@settings(max_examples=15, deadline=None)
@given(data=st.data(), stage=st.sampled_from(["prefill", "decode"]))
def test_the_search_equals_brute_force(data: st.DataObject, stage: str) -> None:
    model = data.draw(models(most_experts=3))
    hardware, workload = data.draw(machines(model)), data.draw(workloads(2, 1))
    problem = Problem(stage, model, hardware, workload, data.draw(routings(model)))  # type: ignore[arg-type]

    def seconds(plan: StagePlan) -> float:
        prediction = predict_stage(
            plan, problem.stage, model, hardware, workload, problem.probabilities
        )
        return float("inf") if prediction.shortage else prediction.step_seconds

    least = min(map(seconds, all_plans(problem)))
    if least == float("inf"):
        with pytest.raises(DoesNotFitError):
            search(problem)
    else:
        assert seconds(search(problem)) == pytest.approx(least, rel=1e-9)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_best_fits_and_is_never_worse_than_a_named_policy(data: st.DataObject) -> None:
    model = data.draw(models())
    hardware, workload = data.draw(machines(model)), data.draw(workloads(2, 1))
    probabilities = data.draw(routings(model))
    named = []
    for policy in POLICIES:
        if policy != "best":
            try:
                named.append(make_plan(policy, model, hardware, workload, probabilities))
            except DoesNotFitError:
                continue
    chosen = make_plan("best", model, hardware, workload, probabilities)
    prediction = predict(chosen, model, hardware, workload, probabilities)
    assert prediction.fits
    for plan in named:
        other = predict(plan, model, hardware, workload, probabilities)
        assert other.fits, plan.policy
        assert prediction.seconds <= other.seconds * (1 + 1e-9), plan.policy
    assert chosen.reasons


@settings(max_examples=10, deadline=None)
@given(data=st.data(), figure=st.sampled_from(FIGURES), factor=st.floats(1.0, 4.0))
def test_a_better_machine_is_never_slower(data: st.DataObject, figure: str, factor: float) -> None:
    model = data.draw(models())
    hardware, workload = data.draw(machines(model)), data.draw(workloads(2, 1))
    probabilities = data.draw(routings(model))
    for policy in (coxmoe, best):
        try:
            before = predict(
                policy(model, hardware, workload, probabilities),
                model,
                hardware,
                workload,
                probabilities,
            )
        except DoesNotFitError:
            continue
        faster = better(hardware, figure, factor)
        plan = policy(model, faster, workload, probabilities)
        after = predict(plan, model, faster, workload, probabilities)
        assert after.seconds <= before.seconds * (1 + 1e-9), policy.__name__


def test_best_gives_layers_their_own_numbers_of_resident_experts() -> None:
    """One layer's choices fall on one expert, the other's on all: the slots go to the second."""
    model = ModelSpec(
        name="two layers",
        layers=2,
        hidden=1024,
        query_heads=8,
        kv_heads=8,
        head_dim=64,
        experts=8,
        top_k=1,
        expert_dim=2048,
        vocabulary=1000,
    )
    link = Link(bytes_per_second=1e9)
    hardware = HardwareSpec(
        name="small VRAM",
        source="made up for a test",
        cpu=Processor(
            name="cpu", flops_per_second=1e11, memory_bytes=10**11, memory_bytes_per_second=1e10
        ),
        gpu=Processor(
            name="gpu",
            flops_per_second=1e14,
            memory_bytes=2**30 + model.other_bytes + 9 * model.expert_bytes,
            memory_bytes_per_second=1e12,
        ),
        host_to_device=link,
        device_to_host=link,
    )
    skewed = [0.93] + [0.01] * 7
    probabilities = np.array([skewed, [1 / 8] * 8])
    plan = best(model, hardware, uniform_workload(32, 64, 16), probabilities)
    first, second = plan.decode.experts
    assert first.resident < second.resident


def test_reasons_name_every_decision() -> None:
    model = ModelSpec(
        name="m",
        layers=2,
        hidden=512,
        query_heads=8,
        kv_heads=8,
        head_dim=64,
        experts=4,
        top_k=2,
        expert_dim=512,
        vocabulary=1000,
    )
    unit = Processor(
        name="unit", flops_per_second=1e13, memory_bytes=2**33, memory_bytes_per_second=1e11
    )
    link = Link(bytes_per_second=1e10)
    hardware = HardwareSpec(
        name="h", source="test", cpu=unit, gpu=unit, host_to_device=link, device_to_host=link
    )
    reasons = "\n".join(coxmoe(model, hardware, uniform_workload(8, 32, 8)).reasons)
    for stage in ("prefill", "decode"):
        for decision in ("attention on", "QKV projection on", "micro-batches of", "a layer"):
            assert f"{stage}: " in reasons
            assert decision in reasons


def test_what_does_not_fit_says_what_is_lacking() -> None:
    unit = Processor(
        name="unit", flops_per_second=1e13, memory_bytes=10**9, memory_bytes_per_second=1e11
    )
    link = Link(bytes_per_second=1e10)
    hardware = HardwareSpec(
        name="tiny box", source="test", cpu=unit, gpu=unit, host_to_device=link, device_to_host=link
    )
    model = ModelSpec(
        name="large",
        layers=8,
        hidden=4096,
        query_heads=32,
        kv_heads=8,
        head_dim=128,
        experts=8,
        top_k=2,
        expert_dim=4096,
        vocabulary=32000,
    )
    with pytest.raises(DoesNotFitError, match=r"host memory lacks \d+\.\d GB.*What would help"):
        coxmoe(model, hardware, uniform_workload(8, 32, 8))
