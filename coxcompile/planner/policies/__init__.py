"""Policies: each makes a plan for a model, a machine and a workload, over one cost model."""

from collections.abc import Callable

from coxcompile.hardware import HardwareSpec
from coxcompile.naming import look_up
from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Plan
from coxcompile.planner.policies.best import best
from coxcompile.planner.policies.coxmoe import coxmoe
from coxcompile.planner.policies.cpu_only import cpu_only
from coxcompile.planner.policies.fitting import DoesNotFitError
from coxcompile.planner.policies.flexgen import flexgen
from coxcompile.planner.policies.gpu_only import gpu_only
from coxcompile.planner.policies.moe_gen import moe_gen
from coxcompile.planner.policies.moe_lightning import moe_lightning
from coxcompile.planner.workload import Workload

__all__ = ["POLICIES", "DoesNotFitError", "make_plan"]

Policy = Callable[[ModelSpec, HardwareSpec, Workload, Floats | None], Plan]

NAMED: dict[str, Policy] = {
    "coxmoe": coxmoe,
    "moe-lightning": moe_lightning,
    "flexgen": flexgen,
    "moe-gen": moe_gen,
    "gpu-only": gpu_only,
    "cpu-only": cpu_only,
}


def make_plan(
    policy: str,
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> Plan:
    """The plan of the policy of that name.

    Args:
        probabilities: [MoE layers, E], the share of tokens that choose each expert
            (``ActivationMap.probabilities()``); None: all experts alike.

    Raises:
        UnknownNameError: there is no such policy.
        ValueError: the policy needs a GPU and the machine has none.
        DoesNotFitError: no plan of the policy fits the machine's memories.
    """
    return look_up("policy", policy, POLICIES)(model, hardware, workload, probabilities)


def plans_that_fit(
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> list[Plan]:
    """The plans of all named policies, without those that the machine is too small for."""
    plans = []
    for name, policy in NAMED.items():
        if hardware.gpu is None and name != "cpu-only":
            continue
        try:
            plans.append(policy(model, hardware, workload, probabilities))
        except DoesNotFitError:
            continue
    return plans


def best_of_all(
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> Plan:
    """:func:`best` over everything, the plans of all named policies included."""
    named = plans_that_fit(model, hardware, workload, probabilities)
    return best(model, hardware, workload, probabilities, others=named)


POLICIES: dict[str, Policy] = {**NAMED, "best": best_of_all}
"""Every policy by the name that :func:`make_plan` takes."""
