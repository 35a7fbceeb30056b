"""Why a stage's plan is as it is: each decision beside the alternative it was chosen over."""

from dataclasses import replace

from coxcompile.planner.cost_model import StagePrediction
from coxcompile.planner.plan import Device, StagePlan
from coxcompile.planner.policies.search import Problem, configure, uniform_split


def explain_stage(problem: Problem, plan: StagePlan) -> list[str]:
    """A sentence for each decision of a coalesced plan, with the numbers behind it."""
    prediction = problem.predict(plan)
    return [
        _attention(problem, plan, prediction),
        _projections(problem, plan, prediction),
        _micro_batch(problem, plan, prediction),
        _experts(problem, plan, prediction),
    ]


def _attention(problem: Problem, plan: StagePlan, prediction: StagePrediction) -> str:
    other: Device = "cpu" if plan.attention == "gpu" else "gpu"
    kv_share = plan.kv_gpu_share if other == "cpu" else 1.0
    moved = replace(plan, attention=other, kv_gpu_share=0.0 if other == "cpu" else kv_share)
    start = f"{problem.stage}: attention on the {_name(plan.attention)}: "
    instead = f"on the {_name(other)}"
    if other == "gpu":
        use = problem.predict(moved).memory.vram
        now = prediction.memory.vram
        growth = sum(use.values()) - sum(now.values())
        evicted = growth / (problem.model.expert_bytes * max(problem.model.moe_layers, 1))
        if growth > 0 and (beyond := _best_seconds(problem, moved)) is not None:
            return (
                f"{start}{instead} its cache and intermediates would take "
                f"{growth / 1e9:.1f} GB of VRAM, the room of {evicted:.0f} of "
                f"{problem.model.experts} experts a layer, and a step {beyond:.3g} s in place of "
                f"{prediction.step_seconds:.3g} s."
            )
    alternative = _best_seconds(problem, moved)
    if alternative is None:
        return f"{start}{instead} it does not fit."
    return (
        f"{start}{instead} a step would take {alternative:.3g} s in place of "
        f"{prediction.step_seconds:.3g} s."
    )


def _projections(problem: Problem, plan: StagePlan, prediction: StagePrediction) -> str:
    flipped: Device = "cpu" if plan.qkv == "gpu" else "gpu"
    alternative = _best_seconds(problem, replace(plan, qkv=flipped, output=flipped))
    otherwise = "do not fit" if alternative is None else f"make a step {alternative:.3g} s"
    return (
        f"{problem.stage}: QKV projection on the {_name(plan.qkv)}, output projection on the "
        f"{_name(plan.output)}: both on the {_name(flipped)} {otherwise}, against "
        f"{prediction.step_seconds:.3g} s."
    )


def _micro_batch(problem: Problem, plan: StagePlan, prediction: StagePrediction) -> str:
    item = "intermediates of a micro-batch"
    held = prediction.memory.vram.get(item, 0.0)
    sentence = (
        f"{problem.stage}: micro-batches of {plan.micro_batch} of {plan.block} sequences, whose "
        f"intermediates take {held / 1e9:.2f} GB of VRAM"
    )
    if plan.micro_batch == plan.block:
        return f"{sentence}; the whole batch fits at once."
    double = replace(plan, micro_batch=min(2 * plan.micro_batch, plan.block))
    alternative = _best_seconds(problem, double)
    otherwise = "do not fit" if alternative is None else f"make a step {alternative:.3g} s"
    return f"{sentence}; twice as large they {otherwise}, against {prediction.step_seconds:.3g} s."


def _experts(problem: Problem, plan: StagePlan, prediction: StagePrediction) -> str:
    splits = plan.experts
    if not splits:
        return f"{problem.stage}: the model has no layer with experts."
    layers = len(splits)

    def mean(counts: list[int]) -> str:
        return f"{sum(counts) / layers:.4g}"

    busy = prediction.busy
    slowest = max(busy, key=lambda resource: busy[resource])
    return (
        f"{problem.stage}: of {problem.model.experts} experts a layer "
        f"{mean([s.resident for s in splits])} resident, {mean([s.migrating for s in splits])} "
        f"migrating, {mean([s.cpu for s in splits])} on the CPU: {prediction.hit_ratio:.0%} of the "
        f"choices find theirs in VRAM, and the busiest resource, {_name(slowest)}, works "
        f"{busy[slowest] / max(prediction.seconds, 1e-12):.0%} of the time."
    )


def _best_seconds(problem: Problem, plan: StagePlan) -> float | None:
    """A step's seconds with the best uniform split for the rest of ``plan``; None: does not fit."""
    experts = problem.model.experts
    found = []
    for on_gpu in (True, False):
        splits = problem.splits(experts, 0) if on_gpu else problem.splits(0, experts)
        template = replace(plan, experts=splits, staging_experts=2 if on_gpu else 0)
        configuration = configure(problem, template, None)
        if configuration is not None and (best := uniform_split(problem, configuration)):
            found.append(best[0])
    return min(found, default=None)


def _name(resource: str) -> str:
    return {
        "gpu": "GPU",
        "cpu": "CPU",
        "host_to_device": "link to the GPU",
        "device_to_host": "link from the GPU",
    }[resource]
