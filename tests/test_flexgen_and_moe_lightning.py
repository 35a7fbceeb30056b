"""FlexGen's constants and disk; MoE-Lightning's roofline, memory rules and roundings."""

from dataclasses import replace

import numpy as np
import pytest

from coxcompile.planner.cost_model import predict
from coxcompile.planner.policies.fitting import DoesNotFitError
from coxcompile.planner.policies.flexgen import flexgen
from coxcompile.planner.policies.flexgen_costs import block_costs, run_of_micro_batch
from coxcompile.planner.policies.moe_lightning import moe_lightning
from coxcompile.planner.policies.moe_lightning_roofline import layer_seconds, resident_shares
from coxcompile.planner.policies.search import micro_batches
from coxcompile.planner.policies.setting import Setting
from coxcompile.planner.policies.splits import spread
from coxcompile.planner.workload import uniform_workload
from tests.planner_cases import L4, MIXTRAL, machine


def test_flexgens_constants_grow_with_the_block_and_skip_nothing() -> None:
    setting = Setting("flexgen", MIXTRAL, L4, uniform_workload(256, 100, 32))
    run = run_of_micro_batch(setting, 32)
    assert min(run.attention_gpu_seconds, run.attention_cpu_seconds, run.decode_seconds) > 0
    one, four = (block_costs(setting, run, block, 0.8) for block in (32, 128))
    assert four.prefill_compute == pytest.approx(4 * one.prefill_compute)
    assert four.cache_bytes == pytest.approx(4 * one.cache_bytes)
    assert four.layer_bytes == one.layer_bytes
    per_layer = MIXTRAL.attention_bytes + MIXTRAL.shared_bytes + 8 * MIXTRAL.expert_bytes
    assert one.layer_bytes == pytest.approx(per_layer)


def test_flexgen_takes_the_disk_where_host_memory_is_too_small() -> None:
    workload = uniform_workload(32, 100, 20)
    small = machine(24e9, 64e9, disk_bytes=10**12)
    plan = flexgen(MIXTRAL, small, workload)
    assert plan.decode.disk_share > 0.2
    assert predict(plan, MIXTRAL, small, workload).fits
    with pytest.raises(DoesNotFitError, match="host memory lacks"):
        flexgen(MIXTRAL, replace(small, disk_bytes=0), workload)


def test_moe_lightning_takes_the_least_of_its_roofline() -> None:
    workload = uniform_workload(128, 77, 64)
    setting = Setting("moe-lightning", MIXTRAL, L4, workload)
    plan = moe_lightning(MIXTRAL, L4, workload).decode
    everything = MIXTRAL.layers * MIXTRAL.experts

    def cost(micro_batch: int, block: int, share: float) -> float:
        times = layer_seconds(setting, micro_batch, np.array([float(block)]), np.array([share]))
        return max(float(time[0]) for time in times) / block

    costs = []
    for micro_batch in micro_batches(128):
        for block in range(micro_batch, 129, micro_batch):
            share = float(resident_shares(setting, micro_batch, np.array([block]), 0.86, 0.8)[0])
            if share >= 0:
                costs.append(cost(micro_batch, block, share))
    resident = sum(split.resident for split in plan.experts) / everything
    # Whole experts may cost it up to one of them.
    one_expert = MIXTRAL.expert_bytes / MIXTRAL.layers / 2e10 / plan.block
    assert cost(plan.micro_batch, plan.block, resident) <= min(costs) + one_expert


def test_moe_lightning_keeps_more_experts_in_more_vram() -> None:
    workload = uniform_workload(128, 77, 64)
    shares = [
        float(
            resident_shares(
                Setting("moe-lightning", MIXTRAL, machine(vram, 192e9), workload),
                *(8, np.array([128.0]), 0.86, 0.8),
            )[0]
        )
        for vram in (24e9, 32e9, 48e9, 80e9, 160e9)
    ]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] == 1


def test_published_l4_share_is_not_rounded_to_nothing() -> None:
    splits = spread(MIXTRAL, int(0.056 * MIXTRAL.layers * MIXTRAL.experts))
    assert sum(split.resident for split in splits) == 14
    assert {split.resident for split in splits} == {0, 1}
    plan = moe_lightning(MIXTRAL, L4, uniform_workload(324, 77, 64))
    assert 0 < sum(split.resident for split in plan.decode.experts) < 2 * MIXTRAL.layers
