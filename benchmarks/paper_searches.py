"""coxmoe's search with some of its freedom taken away."""

from collections.abc import Mapping

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Device, Plan, Stage, StagePlan
from coxcompile.planner.policies.coxmoe import search, templates
from coxcompile.planner.policies.search import DEVICES, Problem
from coxcompile.planner.workload import Workload

Attention = Mapping[Stage, tuple[Device, ...]]
"""Where attention may run, by stage."""

ANYWHERE: Attention = {"prefill": DEVICES, "decode": DEVICES}
ON_GPU: Attention = {"prefill": ("gpu",), "decode": ("gpu",)}
ON_CPU: Attention = {"prefill": ("cpu",), "decode": ("cpu",)}
ON_CPU_IN_DECODE: Attention = {"prefill": ("gpu",), "decode": ("cpu",)}


def plan_with_attention(
    name: str,
    attention: Attention,
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> Plan:
    """The best coalesced plan with attention where ``attention`` allows it, called ``name``."""

    def best(stage: Stage) -> StagePlan:
        problem = Problem(stage, model, hardware, workload, probabilities)
        every = templates(problem, workload.batch)
        return search(problem, [plan for plan in every if plan.attention in attention[stage]])

    return Plan(
        policy=name,
        model=model.name,
        hardware=hardware.name,
        prefill=best("prefill"),
        decode=best("decode"),
    )
