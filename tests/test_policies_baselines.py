"""The baseline policies: plans that fit or an error that helps, splits, and their own rules."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.cost_model import predict
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.policies.cpu_only import cpu_only
from coxcompile.planner.policies.fitting import DoesNotFitError
from coxcompile.planner.policies.flexgen import flexgen
from coxcompile.planner.policies.gpu_only import gpu_only
from coxcompile.planner.policies.moe_gen import moe_gen
from coxcompile.planner.policies.moe_lightning import moe_lightning
from coxcompile.planner.policies.splits import fill, spread
from coxcompile.planner.workload import Workload, uniform_workload
from tests.planner_cases import L4, MIXTRAL, machine, models, workloads

ON_GPU = {
    "flexgen": flexgen,
    "moe-lightning": moe_lightning,
    "moe-gen": moe_gen,
    "gpu-only": gpu_only,
}
POLICIES = {**ON_GPU, "cpu-only": cpu_only}
FEW = settings(max_examples=25, deadline=None)

shares_of_the_model = st.floats(0.0, 3.0)


@FEW
@given(
    model=models(),
    workload=workloads,
    vram=shares_of_the_model,
    host=shares_of_the_model,
    disk=st.sampled_from([0, 10**12]),
    seed=st.none() | st.integers(0, 9),
)
@pytest.mark.parametrize("name", POLICIES)
def test_a_plan_fits_or_the_error_says_what_is_lacking(
    name: str,
    model: ModelSpec,
    workload: Workload,
    vram: float,
    host: float,
    disk: int,
    seed: int | None,
) -> None:
    hardware = machine(
        HardwareSpec.gpu_reserve_bytes + vram * model.total_bytes,
        HardwareSpec.host_reserve_bytes + host * model.total_bytes,
        disk,
    )
    probabilities = None
    if seed is not None:
        skewed = np.random.default_rng(seed).dirichlet(
            np.full(model.experts, 0.5), size=model.moe_layers
        )
        probabilities = np.minimum(skewed * model.top_k, 1.0)
    try:
        plan = POLICIES[name](model, hardware, workload, probabilities)
    except DoesNotFitError as error:
        assert "lacks" in str(error)  # noqa: PT017
        assert name in str(error)  # noqa: PT017
        return
    assert plan.policy == name
    assert predict(plan, model, hardware, workload, probabilities).fits
    assert plan.prefill.block == plan.decode.block
    for stage in (plan.prefill, plan.decode):
        assert [split.experts for split in stage.experts] == [model.experts] * model.moe_layers
        assert stage.coalesced == (name not in ("flexgen", "moe-lightning"))
    assert len(plan.reasons) >= 3
    for reason in plan.reasons:
        assert reason.endswith(".")
        assert any(character.isdigit() for character in reason)


@pytest.mark.parametrize("name", POLICIES)
def test_a_large_enough_machine_is_enough(name: str) -> None:
    workload = uniform_workload(64, 100, 20)
    plan = POLICIES[name](MIXTRAL, L4, workload)
    assert predict(plan, MIXTRAL, L4, workload).fits


@pytest.mark.parametrize("name", ON_GPU)
def test_without_a_gpu_the_remedy_is_named(name: str) -> None:
    hardware = replace(L4, gpu=None)
    with pytest.raises(ValueError, match=f"{name} needs a GPU.*use policy cpu-only"):
        ON_GPU[name](MIXTRAL, hardware, uniform_workload(8, 100, 20))


@FEW
@given(
    model=models(), resident=st.integers(0, 96), room=st.integers(0, 120), most=st.integers(1, 9)
)
def test_experts_are_dealt_out_whole(model: ModelSpec, resident: int, room: int, most: int) -> None:
    everything = model.moe_layers * model.experts
    splits = spread(model, min(resident, everything))
    counts = [split.resident for split in splits]
    assert sum(counts) == min(resident, everything)
    assert max(counts) - min(counts) <= 1
    filled, slots = fill(model, room, most)
    assert filled + slots <= min(room, everything)
    assert filled == everything or slots > 0 or room == 0


def test_moe_gen_fetches_all_experts_and_batches_modules_apart() -> None:
    plan = moe_gen(MIXTRAL, L4, uniform_workload(512, 900, 64))
    for stage in (plan.prefill, plan.decode):
        assert all(split.migrating == MIXTRAL.experts for split in stage.experts)
        assert stage.kv_gpu_share == 0
        assert 2 <= stage.staging_experts <= MIXTRAL.experts
    assert plan.prefill.micro_batch < plan.prefill.block
    assert plan.prefill.expert_rows is not None


def test_cpu_only_takes_larger_blocks_of_more_memory() -> None:
    workload = uniform_workload(2048, 900, 100)
    blocks = [
        cpu_only(MIXTRAL, machine(24e9, host), workload).decode.block
        for host in (110e9, 130e9, 200e9, 900e9)
    ]
    assert blocks == sorted(set(blocks))
    assert blocks[-1] == 2048


def test_gpu_only_is_never_slower_with_everything_in_vram() -> None:
    workload = uniform_workload(64, 100, 20)
    large = machine(400e9, 192e9)
    plan = gpu_only(MIXTRAL, large, workload)
    assert all(split.resident == MIXTRAL.experts for split in plan.decode.experts)
    assert plan.decode.kv_gpu_share == 1
    fast = predict(plan, MIXTRAL, large, workload).seconds
    slow = predict(gpu_only(MIXTRAL, L4, workload), MIXTRAL, L4, workload).seconds
    assert fast < slow
