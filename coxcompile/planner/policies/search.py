"""The search that coxmoe and best share: one configuration at a time, all splits of it at once."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.cost_model import StagePrediction, costs_of, predict_stage
from coxcompile.planner.expert_costs import ExpertCosts, Floats
from coxcompile.planner.layer_time import dense_layer_time, moe_layer_time, output_head_time
from coxcompile.planner.memory import STAGING, memory_use
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Device, ExpertSplit, Stage, StagePlan
from coxcompile.planner.stage_load import StageLoad, stage_load
from coxcompile.planner.workload import Workload

STAGING_EXPERTS = 2
"""Slots for migrating experts: one is computed while the next one arrives (paper §2, N_M)."""

Counts = NDArray[np.int64]
"""Numbers of experts, one a candidate."""

DEVICES: tuple[Device, Device] = ("gpu", "cpu")


@dataclass(frozen=True)
class Problem:
    """What a stage's search is about."""

    stage: Stage
    model: ModelSpec
    hardware: HardwareSpec
    workload: Workload
    probabilities: Floats | None

    @property
    def vram_bytes(self) -> int:
        """The GPU's memory; 0 without one."""
        return self.hardware.gpu.memory_bytes if self.hardware.gpu else 0

    def predict(self, plan: StagePlan) -> StagePrediction:
        """What ``plan`` would take here."""
        return predict_stage(
            plan, self.stage, self.model, self.hardware, self.workload, self.probabilities
        )

    def splits(self, resident: int, cpu: int) -> tuple[ExpertSplit, ...]:
        """The same split for every layer."""
        migrating = self.model.experts - resident - cpu
        split = ExpertSplit(resident=resident, migrating=migrating, cpu=cpu)
        return (split,) * self.model.moe_layers


@dataclass(frozen=True)
class Configuration:
    """A stage plan but for its expert splits, with what does not depend on them.

    Attributes:
        plan: all experts resident (``on_gpu``) or the CPU's, as a template.
        on_gpu: whether any expert runs on the GPU.
        other_seconds: of a step outside the layers with experts.
        slots: experts that VRAM holds beside everything else, all layers together; negative where
            the staging alone is too large for it.
        slots_without_staging: the same if no expert migrates.
    """

    plan: StagePlan
    on_gpu: bool
    load: StageLoad
    costs: ExpertCosts
    other_seconds: float
    slots: int
    slots_without_staging: int


def micro_batches(block: int) -> list[int]:
    """The μ that are tried: powers of two, and the whole block."""
    return sorted({*(2**i for i in range(block.bit_length()) if 2**i < block), block})


def configure(problem: Problem, plan: StagePlan, costs: ExpertCosts | None) -> Configuration | None:
    """The configuration of a template; None if host memory, disk or VRAM cannot hold it.

    ``costs`` of an earlier configuration with as many tokens are reused.
    """
    model, hardware = problem.model, problem.hardware
    load = stage_load(problem.workload, problem.stage, plan)
    costs = costs or costs_of(plan, model, hardware, load, problem.probabilities)
    on_gpu = any(split.resident for split in plan.experts)
    empty = replace(plan, experts=problem.splits(0, 0)) if on_gpu else plan
    use = memory_use(empty, model, hardware, problem.workload, load, costs)
    free = problem.vram_bytes - use.vram_bytes
    without_staging = free + use.vram.get(STAGING, 0.0)
    if use.host_bytes > hardware.cpu.memory_bytes or without_staging < 0:
        return None
    slots = int(free // model.expert_bytes)
    slots_without_staging = int(without_staging // model.expert_bytes)
    dense = dense_layer_time(plan, model, hardware, load).seconds if model.dense_layers else 0.0
    head = output_head_time(plan, model, hardware, load).seconds
    other = float(head + model.dense_layers * dense)
    return Configuration(plan, on_gpu, load, costs, other, slots, slots_without_staging)


def uniform_split(problem: Problem, configuration: Configuration) -> tuple[float, int, int] | None:
    """(seconds of a step, N_R, N_C) of the best split that is the same in all layers, if one fits.

    For each N_C only the largest N_R that fits is tried. That loses nothing: an
    expert that is resident instead of migrating is computed by the same processor and crosses the
    link no more, so with N_C fixed no term of T_layer grows with N_R (a property test checks it);
    and N_M = 0 needs no staging, so that it is tried wherever N_R alone fits.
    """
    model = problem.model
    if not configuration.on_gpu:
        seconds = _step_seconds(problem, configuration, np.array([0]), np.array([model.experts]))
        return float(seconds[0]), 0, model.experts
    layers = max(model.moe_layers, 1)
    beside_staging = configuration.slots // layers
    alone = configuration.slots_without_staging // layers
    cpu = np.arange(model.experts)
    on_gpu = model.experts - cpu
    resident = np.where(on_gpu <= alone, on_gpu, np.minimum(on_gpu, beside_staging))
    possible = resident >= 0
    if not possible.any():
        return None
    cpu, resident = cpu[possible], resident[possible]
    seconds = _step_seconds(problem, configuration, resident, cpu)
    best = int(np.argmin(seconds))
    return float(seconds[best]), int(resident[best]), int(cpu[best])


def layer_seconds(
    problem: Problem, configuration: Configuration, resident: Counts, cpu: Counts
) -> Floats:
    """[distinct layers, candidates]: T_layer for each split (N_R, N_C)."""
    rows = np.arange(len(configuration.costs.most_tokens))[:, None]
    time = moe_layer_time(
        configuration.plan,
        problem.model,
        problem.hardware,
        configuration.load,
        configuration.costs,
        rows,
        resident[None, :],
        cpu[None, :],
    )
    return np.broadcast_to(time.seconds, (len(rows), len(resident)))


def _step_seconds(
    problem: Problem, configuration: Configuration, resident: Counts, cpu: Counts
) -> Floats:
    weights = np.bincount(configuration.costs.row, minlength=len(configuration.costs.most_tokens))
    seconds = layer_seconds(problem, configuration, resident, cpu)
    return configuration.other_seconds + weights @ seconds
