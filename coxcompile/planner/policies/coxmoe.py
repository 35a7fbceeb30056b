"""CoX-MoE's coalescing-aware orchestration: the joint search of paper §4.1, for each stage."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.expert_costs import ExpertCosts, Floats
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Plan, StagePlan
from coxcompile.planner.policies.fitting import does_not_fit
from coxcompile.planner.policies.reasons import explain_stage
from coxcompile.planner.policies.search import (
    DEVICES,
    STAGING_EXPERTS,
    Problem,
    configure,
    micro_batches,
    uniform_split,
)
from coxcompile.planner.workload import Workload

EXPERT_ROWS = 8192
"""Tokens of an expert that the GPU takes at a time. So many keep any GPU's products bound by
computing even if the weights are read again for each, and their intermediates stay small."""


def coxmoe(
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> Plan:
    """The plan with the least predicted time over all (α0, α1, α2, μ, N_R, N_M, N_C).

    Exhaustive but for splits that cannot win (see :func:`search.uniform_split`). The KV cache lies
    where attention runs, or in host memory for attention on the GPU. Experts run once over the
    whole batch.

    Raises:
        DoesNotFitError: no plan fits.
        ValueError: the machine has no GPU.
    """
    if hardware.gpu is None:
        raise ValueError(f"coxmoe: {hardware.name} has no GPU; use policy cpu-only")
    stages = {}
    reasons: list[str] = []
    for stage in ("prefill", "decode"):
        problem = Problem(stage, model, hardware, workload, probabilities)
        stages[stage] = search(problem)
        reasons += explain_stage(problem, stages[stage])
    return Plan(
        policy="coxmoe",
        model=model.name,
        hardware=hardware.name,
        prefill=stages["prefill"],
        decode=stages["decode"],
        reasons=tuple(reasons),
    )


def search(problem: Problem, candidates: Iterable[StagePlan] | None = None) -> StagePlan:
    """The best plan of one stage; its split aside it is one of ``candidates``, or of all templates.

    Raises:
        DoesNotFitError: none fits.
    """
    every = templates(problem, problem.workload.batch) if candidates is None else candidates
    chosen_from = list(every)
    best: tuple[float, StagePlan] | None = None
    costs: ExpertCosts | None = None
    for template in chosen_from:
        configuration = configure(problem, template, costs)
        if configuration is None:
            continue
        costs = configuration.costs
        found = uniform_split(problem, configuration)
        if found is not None and (best is None or found[0] < best[0]):
            seconds, resident, cpu = found
            best = seconds, with_split(problem, template, resident, cpu)
    if best is None:
        raise does_not_fit(
            "coxmoe",
            problem.stage,
            (
                replace(t, experts=problem.splits(0, problem.model.experts))
                for t in smallest(chosen_from)
            ),
            problem.model,
            problem.hardware,
            problem.workload,
            problem.probabilities,
        )
    return best[1]


def templates(problem: Problem, block: int) -> Iterator[StagePlan]:
    """Every (α0, α1, α2, μ, place of the KV cache), with experts on the GPU and without."""
    experts = problem.model.experts
    for devices in itertools.product(DEVICES, repeat=3):
        kv_shares = (1.0, 0.0) if devices[1] == "gpu" else (0.0,)
        for micro_batch, kv_share, on_gpu in itertools.product(
            micro_batches(block), kv_shares, (True, False)
        ):
            yield StagePlan(
                qkv=devices[0],
                attention=devices[1],
                output=devices[2],
                micro_batch=micro_batch,
                block=block,
                coalesced=True,
                experts=problem.splits(experts, 0) if on_gpu else problem.splits(0, experts),
                staging_experts=STAGING_EXPERTS if on_gpu else 0,
                kv_gpu_share=kv_share,
                expert_rows=EXPERT_ROWS if on_gpu else None,
            )


def smallest(candidates: Iterable[StagePlan]) -> Iterator[StagePlan]:
    """Those that need the least memory: one sequence a time, no expert on the GPU."""
    return (t for t in candidates if t.micro_batch == 1 and t.staging_experts == 0)


def with_split(problem: Problem, template: StagePlan, resident: int, cpu: int) -> StagePlan:
    """The template with this split in every layer, and staging slots only if experts migrate."""
    splits = problem.splits(resident, cpu)
    migrate = any(split.migrating for split in splits)
    staging = template.staging_experts if migrate else 0
    return replace(template, experts=splits, staging_experts=staging)
