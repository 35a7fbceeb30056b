"""The closed form of a layer's time: what the search relies on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coxcompile.planner.cost_model import costs_of, predict_stage
from coxcompile.planner.layer_time import moe_layer_time
from coxcompile.planner.operations import Work
from coxcompile.planner.stage_load import stage_load
from coxcompile.planner.waves import flowing, pipelined
from tests.simulator_cases import Case, cases, faster

TOLERANCE = 1 + 1e-9

CHAIN = [Work("a", "gpu", 1.0), Work("b", "cpu", 3.0), Work("c", "host_to_device", 2.0)]


def test_first_chain_passes_alone_and_each_further_one_adds_the_slowest_resource() -> None:
    assert pipelined(CHAIN, 1) == pytest.approx(6.0)
    assert pipelined(CHAIN, 5) == pytest.approx(6.0 + 4 * 3.0)
    assert pipelined(CHAIN, 1000) == pytest.approx(6.0 + 999 * 3.0)


def test_works_on_one_resource_do_not_overlap() -> None:
    chain = [Work("a", "gpu", 1.0), Work("b", "gpu", 2.0)]
    assert pipelined(chain, 4) == pytest.approx(12.0)


def test_a_resource_used_twice_serves_the_earlier_micro_batch_first() -> None:
    chain = [Work("a", "gpu", 1.0), Work("b", "cpu", 2.0), Work("c", "gpu", 1.0)]
    # gpu: a0 a1 . c0 . c1 (0-1, 1-2, 3-4, 5-6); cpu: b0 1-3, b1 3-5
    assert pipelined(chain, 2) == pytest.approx(6.0)


@pytest.mark.parametrize("repetitions", [1, 2, 5, 40])
def test_flowing_layers_fill_the_pipeline_once(repetitions: int) -> None:
    layers = 6
    unhindered = max(6.0, repetitions * 3.0)
    seconds = flowing(CHAIN, repetitions, layers)
    assert unhindered - 1e-9 <= seconds <= unhindered + 3.0 / layers + 1e-9


@settings(deadline=None, max_examples=100)
@given(case=cases())
def test_more_resident_experts_never_take_longer_where_the_cpu_has_whole_experts(
    case: Case,
) -> None:
    plan, stage, model, hardware, workload, probabilities = case.arguments
    if hardware.gpu is None or plan.cpu_rows_share:
        return
    load = stage_load(workload, stage, plan)
    costs = costs_of(plan, model, hardware, load, probabilities)
    for row in range(len(costs.most_tokens)):
        for cpu in range(model.experts + 1):
            resident = np.arange(model.experts - cpu + 1)
            time = moe_layer_time(plan, model, hardware, load, costs, row, resident, cpu)
            seconds = np.broadcast_to(time.seconds, resident.shape)
            assert (seconds[1:] <= seconds[:-1] * TOLERANCE).all()


@settings(deadline=None, max_examples=100)
@given(case=cases())
def test_many_splits_at_once_are_each_split_alone(case: Case) -> None:
    plan, stage, model, hardware, workload, probabilities = case.arguments
    load = stage_load(workload, stage, plan)
    costs = costs_of(plan, model, hardware, load, probabilities)
    split = plan.experts[0]
    rows = np.arange(len(costs.most_tokens))[:, None]
    resident = np.array([[0, split.resident]])
    cpu = np.array([[model.experts, split.cpu]])
    together = moe_layer_time(plan, model, hardware, load, costs, rows, resident, cpu)
    alone = [
        moe_layer_time(plan, model, hardware, load, costs, row, split.resident, split.cpu)
        for row in range(len(rows))
    ]
    np.testing.assert_allclose(
        np.broadcast_to(together.seconds, (len(rows), 2))[:, 1],
        [float(time.seconds) for time in alone],
    )


@settings(deadline=None, max_examples=200)
@given(
    case=cases(),
    what=st.sampled_from(
        [
            *("gpu.flops_per_second", "gpu.memory_bytes_per_second"),
            *("cpu.flops_per_second", "cpu.memory_bytes_per_second"),
            *("host_to_device.bytes_per_second", "device_to_host.bytes_per_second"),
        ]
    ),
    factor=st.floats(1.0, 100.0),
)
def test_a_faster_machine_never_makes_a_plan_slower_or_larger(
    case: Case, what: str, factor: float
) -> None:
    plan, stage, model, hardware, workload, probabilities = case.arguments
    before = predict_stage(*case.arguments)
    after = predict_stage(
        plan, stage, model, faster(hardware, what, factor), workload, probabilities
    )
    assert after.seconds <= before.seconds * TOLERANCE
    assert after.memory.vram_bytes <= before.memory.vram_bytes
