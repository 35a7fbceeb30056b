"""A policy's plan for one setting and what it is predicted to do, with what binds it and why."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.cost_model import StagePrediction, predict
from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.layer_time import output_head_time
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.operations import micro_batch_chain
from coxcompile.planner.plan import Plan, Stage, StagePlan
from coxcompile.planner.stage_load import stage_load
from coxcompile.planner.workload import Workload

STAGES: tuple[Stage, Stage] = ("prefill", "decode")
NAMES = {
    "gpu": "the GPU",
    "cpu": "the CPU",
    "host_to_device": "the link to the GPU",
    "device_to_host": "the link from the GPU",
}


@dataclass(frozen=True)
class StageOutcome:
    """One stage's prediction in the numbers that explain it.

    Attributes:
        seconds: of the whole stage.
        busiest: the resource that works longest; busiest_seconds: how long.
        busy: share of the stage's time that each resource works.
        chief_work: what the busiest resource does most; chief_share: its share of that work.
        expert_rows: tokens that an expert gets at a time, on average.
        hit_ratio: share of expert choices that find theirs in VRAM.
        attention: where it runs.
        resident, migrating, cpu: experts a layer, on average.
        micro_batch, block: sequences.
        cache_in_vram: share of the KV cache.
        vram_bytes: in all; expert_vram_bytes: of resident experts and staging slots.
    """

    seconds: float
    busiest: str
    busiest_seconds: float
    busy: dict[str, float]
    chief_work: str
    chief_share: float
    expert_rows: float
    hit_ratio: float
    attention: str
    resident: float
    migrating: float
    cpu: float
    micro_batch: int
    block: int
    cache_in_vram: float
    vram_bytes: float
    expert_vram_bytes: float


@dataclass(frozen=True)
class Outcome:
    """A plan's prediction; never a measurement."""

    policy: str
    tokens_per_second: float
    prefill: StageOutcome
    decode: StageOutcome

    @property
    def seconds(self) -> float:
        """Both stages."""
        return self.prefill.seconds + self.decode.seconds

    @property
    def seconds_without_overlap(self) -> float:
        """Both stages, if of all resources only one worked at a time."""
        return sum(s.seconds * sum(s.busy.values()) for s in (self.prefill, self.decode))

    def stage(self, name: Stage) -> StageOutcome:
        """One stage's."""
        return self.prefill if name == "prefill" else self.decode


def outcome_of(
    plan: Plan,
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> Outcome:
    """Predict ``plan``."""
    prediction = predict(plan, model, hardware, workload, probabilities)
    if not prediction.fits:
        raise ValueError(f"the plan of {plan.policy} for {model.name} does not fit {hardware.name}")
    prefill = _stage(plan.prefill, "prefill", prediction.prefill, model, hardware, workload)
    decode = _stage(plan.decode, "decode", prediction.decode, model, hardware, workload)
    return Outcome(plan.policy, float(prediction.tokens_per_second), prefill, decode)


def _stage(
    plan: StagePlan,
    stage: Stage,
    prediction: StagePrediction,
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
) -> StageOutcome:
    load = stage_load(workload, stage, plan)
    busiest = max(prediction.busy, key=lambda resource: prediction.busy[resource])
    busiest_seconds = float(prediction.busy[busiest])
    passes = load.steps * load.blocks * load.micro_batches
    head = output_head_time(plan, model, hardware, load)
    works: defaultdict[str, float] = defaultdict(float)
    works["the output head"] = load.steps * load.blocks * float(head.busy[busiest])
    for layers, width in (
        (model.moe_layers, model.shared_dim),
        (model.dense_layers, model.dense_dim),
    ):
        for work in micro_batch_chain(plan, model, hardware, load, width):
            if work.resource == busiest:
                works[work.name] += layers * passes * work.seconds
    works["experts"] = busiest_seconds - sum(works.values())
    chief_work = max(works, key=lambda name: works[name])
    together = load.tokens if plan.coalesced else load.tokens / load.micro_batches
    splits = plan.experts
    vram = prediction.memory.vram
    return StageOutcome(
        seconds=float(prediction.seconds),
        busiest=busiest,
        busiest_seconds=busiest_seconds,
        busy={
            name: float(seconds / prediction.seconds) for name, seconds in prediction.busy.items()
        },
        chief_work=chief_work,
        chief_share=float(works[chief_work]) / busiest_seconds,
        expert_rows=together * model.top_k / model.experts,
        hit_ratio=prediction.hit_ratio,
        attention=plan.attention,
        resident=fmean(split.resident for split in splits),
        migrating=fmean(split.migrating for split in splits),
        cpu=fmean(split.cpu for split in splits),
        micro_batch=plan.micro_batch,
        block=plan.block,
        cache_in_vram=plan.kv_gpu_share,
        vram_bytes=prediction.memory.vram_bytes,
        expert_vram_bytes=vram.get("resident experts", 0.0)
        + vram.get("staging of migrating experts", 0.0),
    )
