"""The analytic cost model: what a plan will take, stage by stage, in time and in memory."""

from dataclasses import dataclass

import numpy as np

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.expert_costs import (
    ExpertCosts,
    Floats,
    expert_costs,
    uniform_probabilities,
)
from coxcompile.planner.layer_time import (
    RESOURCES,
    dense_layer_time,
    moe_layer_time,
    output_head_time,
)
from coxcompile.planner.memory import MemoryUse, memory_use, shortage
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.operations import Resource
from coxcompile.planner.plan import Plan, Stage, StagePlan
from coxcompile.planner.stage_load import StageLoad, stage_load
from coxcompile.planner.workload import Workload


@dataclass(frozen=True)
class StagePrediction:
    """What one stage of a plan is predicted to take.

    Attributes:
        seconds: of the whole stage, for the whole workload.
        step_seconds: of one step of one block.
        busy: seconds that each resource works, of the whole stage.
        hit_ratio: share of expert choices that find their expert in VRAM.
        memory: bytes held at the peak.
        shortage: a sentence for each memory that is too small; empty: the plan fits.
    """

    seconds: float
    step_seconds: float
    busy: dict[Resource, float]
    hit_ratio: float
    memory: MemoryUse
    shortage: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """What a plan is predicted to take: never a measurement.

    Attributes:
        tokens_per_second: generated tokens of the workload over the time of both stages.
    """

    prefill: StagePrediction
    decode: StagePrediction
    tokens_per_second: float

    @property
    def seconds(self) -> float:
        """Both stages."""
        return self.prefill.seconds + self.decode.seconds

    @property
    def fits(self) -> bool:
        """Whether both stages fit all memories."""
        return not self.prefill.shortage and not self.decode.shortage


def predict(
    plan: Plan,
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> Prediction:
    """Predict both stages of ``plan``: T_tot = Σ over layers and steps of T_layer (paper §4.1).

    Filling VRAM with the resident experts is not counted: it happens before inference (paper §4.3).

    Args:
        probabilities: [MoE layers, E], the share of tokens that choose each expert, in the model's
            order of layers (``ActivationMap.probabilities()``); None: all alike, k / E.
    """
    prefill, decode = (
        predict_stage(plan.stage(stage), stage, model, hardware, workload, probabilities)
        for stage in ("prefill", "decode")
    )
    return Prediction(prefill, decode, workload.output_tokens / (prefill.seconds + decode.seconds))


def predict_stage(
    plan: StagePlan,
    stage: Stage,
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
    costs: ExpertCosts | None = None,
) -> StagePrediction:
    """Predict one stage; see :func:`predict`. ``costs`` are its :func:`costs_of`, if known."""
    if len(plan.experts) != model.moe_layers:
        raise ValueError(
            f"experts has {len(plan.experts)} splits, but {model.name} has {model.moe_layers} "
            "layers with experts"
        )
    load = stage_load(workload, stage, plan)
    costs = costs or costs_of(plan, model, hardware, load, probabilities)
    resident = np.array([split.resident for split in plan.experts])
    cpu = np.array([split.cpu for split in plan.experts])
    layers = [
        (1, moe_layer_time(plan, model, hardware, load, costs, costs.row, resident, cpu)),
        (model.dense_layers, dense_layer_time(plan, model, hardware, load)),
    ]
    head = output_head_time(plan, model, hardware, load)
    step = head.seconds + sum(count * float(np.sum(time.seconds)) for count, time in layers)
    busy = {
        resource: head.busy[resource]
        + sum(
            count * float(np.sum(np.broadcast_to(time.busy[resource], np.shape(time.seconds))))
            for count, time in layers
        )
        for resource in RESOURCES
    }
    if plan.disk_share:
        if not hardware.disk_bytes_per_second:
            raise ValueError(f"the plan keeps weights on disk, but {hardware.name} has none")
        step = max(step, plan.disk_share * model.total_bytes / hardware.disk_bytes_per_second)
    memory = memory_use(plan, model, hardware, workload, load, costs)
    repetitions = load.steps * load.blocks
    return StagePrediction(
        seconds=float(repetitions * step),
        step_seconds=float(step),
        busy={resource: float(repetitions * seconds) for resource, seconds in busy.items()},
        hit_ratio=float(np.mean(costs.choices[costs.row, resident])) if len(resident) else 0.0,
        memory=memory,
        shortage=tuple(shortage(memory, hardware)),
    )


def costs_of(
    plan: StagePlan,
    model: ModelSpec,
    hardware: HardwareSpec,
    load: StageLoad,
    probabilities: Floats | None,
    *,
    hottest_first: bool = True,
) -> ExpertCosts:
    """The experts' costs for the tokens that run through them together under ``plan``."""
    tokens = load.tokens if plan.coalesced else load.tokens / load.micro_batches
    if probabilities is None:
        probabilities = uniform_probabilities(model)
    elif probabilities.shape != (model.moe_layers, model.experts):
        raise ValueError(
            f"probabilities has shape {probabilities.shape}, but {model.name} needs "
            f"({model.moe_layers}, {model.experts})"
        )
    return expert_costs(model, hardware, tokens, probabilities, hottest_first=hottest_first)
