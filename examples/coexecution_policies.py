"""What the co-execution demo compares: the policies, and the steps of the paper's ablation."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Plan, StagePlan
from coxcompile.planner.policies import make_plan
from coxcompile.planner.policies.coxmoe import search, templates
from coxcompile.planner.policies.search import Problem
from coxcompile.planner.policies.setting import STAGES
from coxcompile.planner.workload import Workload

Probabilities = NDArray[np.float64] | None
Planner = Callable[[ModelSpec, HardwareSpec, Workload, Probabilities], Plan]


@dataclass(frozen=True)
class Subject:
    """One row of the demo.

    Attributes:
        name: as the table shows it.
        plan: makes its plan.
        stratified: the hottest experts become resident (EAS); else some experts.
    """

    name: str
    plan: Planner
    stratified: bool = False


def subjects() -> list[Subject]:
    """Baselines first, then CoX-MoE step by step, as in the paper's table 3."""
    return [
        Subject("flexgen", _named("flexgen")),
        Subject("moe-gen", _named("moe-gen")),
        Subject("moe-lightning", _named("moe-lightning")),
        Subject("coalescing", _coalescing),
        Subject("offloading", _named("coxmoe")),
        Subject("coxmoe", _named("coxmoe"), stratified=True),
        Subject("gpu-only", _named("gpu-only")),
        Subject("cpu-only", _named("cpu-only")),
    ]


def _named(policy: str) -> Planner:
    def plan(
        model: ModelSpec, hardware: HardwareSpec, workload: Workload, probabilities: Probabilities
    ) -> Plan:
        return make_plan(policy, model, hardware, workload, probabilities)

    return plan


def _coalescing(
    model: ModelSpec, hardware: HardwareSpec, workload: Workload, probabilities: Probabilities
) -> Plan:
    """CoX-MoE with all of OP0 to OP2 on the GPU: experts coalesced and divided, nothing else."""
    stages: dict[str, StagePlan] = {}
    for stage in STAGES:
        problem = Problem(stage, model, hardware, workload, probabilities)
        on_gpu = [
            template
            for template in templates(problem, workload.batch)
            if template.devices == ("gpu", "gpu", "gpu")
        ]
        stages[stage] = search(problem, on_gpu)
    whole = make_plan("coxmoe", model, hardware, workload, probabilities)
    return replace(whole, policy="coalescing", prefill=stages["prefill"], decode=stages["decode"])
