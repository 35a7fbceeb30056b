"""The annotated graph → unchanged, and the plan that the passes after it carry out."""

from dataclasses import replace

import torch
from torch.fx import GraphModule

from coxcompile.hardware import HardwareSpec
from coxcompile.options import Options
from coxcompile.passes.context import PassContext, Placement
from coxcompile.planner.model_from_graph import model_from_graph, workload_from_graph
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Plan, Stage, StagePlan
from coxcompile.planner.policies import make_plan
from coxcompile.planner.workload import Workload

EMULATED_RESERVE = 1 / 16
"""Share of the emulated accelerator's memory that policies leave for what they do not count."""


class PlanError(ValueError):
    """The plan does not fit the graph; the message names the field and the remedy."""


def plan(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Ask the policy of ``options.plan`` for a plan of this graph, or take the plan given there.

    The model's dimensions and the workload (batch, length, prefill or decode) are the graph's own.
    Must not go on with a plan that is made for another model, or that keeps weights on disk, which
    this runtime cannot.

    Raises:
        PlanError: see above.
        DoesNotFitError: the policy finds no plan for this memory.
    """
    if not any("layer" in node.meta for node in graph_module.graph.nodes):
        raise PlanError(f'{"; ".join(context.notes)}; use accelerator="none"')
    model = model_from_graph(graph_module, context.blocks)
    stage, workload = workload_from_graph(graph_module)
    made = _plan_for(context, model, workload)
    stage_plan = made.stage(stage)
    _check(stage_plan, model, stage)
    context.placement = Placement(model, stage, stage_plan, workload, made.reasons)
    return graph_module


def hardware_for(options: Options) -> HardwareSpec:
    """The machine to plan for, with ``options.vram`` as its GPU's memory."""
    from coxcompile.detection import detect_system
    from coxcompile.systems import system_named

    if options.hardware is not None:
        hardware = options.hardware
    elif options.accelerator == "emulated":
        hardware = system_named("rtx6000ada-8452y")
    else:
        hardware = detect_system()
    if hardware.gpu is None:
        raise PlanError(
            f"hardware {hardware.name} has no gpu, but accelerator is {options.accelerator!r}; "
            'describe one, or use accelerator="none"'
        )
    if options.vram is None:
        return hardware
    reserve = hardware.gpu_reserve_bytes
    if options.accelerator == "emulated":
        reserve = min(reserve, round(EMULATED_RESERVE * options.vram))
    gpu = replace(hardware.gpu, memory_bytes=options.vram)
    return replace(hardware, gpu=gpu, gpu_reserve_bytes=reserve)


def _plan_for(context: PassContext, model: ModelSpec, workload: Workload) -> Plan:
    chosen = context.options.plan
    if isinstance(chosen, Plan):
        return chosen
    activation_map = context.options.activation_map
    probabilities = None
    if activation_map is not None and activation_map.tokens:
        probabilities = activation_map.probabilities()
    hardware = hardware_for(context.options)
    reserve = hardware.gpu_reserve_bytes + context.set_aside_bytes
    hardware = replace(hardware, gpu_reserve_bytes=reserve)
    return make_plan(chosen, model, hardware, workload, probabilities)


def _check(stage_plan: StagePlan, model: ModelSpec, stage: Stage) -> None:
    for name, usual in (("attention_parts", 1), ("cpu_rows_share", 0.0)):
        if getattr(stage_plan, name) != usual:
            raise PlanError(
                f"the plan's {name} in {stage} is {getattr(stage_plan, name)}, which is planned "
                f'but not carried out yet; make it {usual}, or use another policy than "best"'
            )
    if stage_plan.disk_share:
        raise PlanError(
            f"the plan's disk_share in {stage} is {stage_plan.disk_share:.2g}, but weights are "
            "read from host memory only; give a machine with more memory_bytes, or another policy"
        )
    if len(stage_plan.experts) != model.moe_layers or any(
        split.experts != model.experts for split in stage_plan.experts
    ):
        raise PlanError(
            f"the plan's experts are {len(stage_plan.experts)} layers of "
            f"{sorted({split.experts for split in stage_plan.experts})} experts, but the graph has "
            f"{model.moe_layers} of {model.experts}; make the plan for this model"
        )
    most = max((split.migrating for split in stage_plan.experts), default=0)
    if stage_plan.staging_experts < (needed := min(most, 1) if stage_plan.coalesced else most):
        raise PlanError(
            f"the plan's staging_experts in {stage} is {stage_plan.staging_experts}, but a layer "
            f"has {most} migrating experts; make it {needed} or more"
        )


def accelerator_name(options: Options) -> str:
    """What ``accelerator`` stands for here: "cuda", "emulated" or "none"."""
    if options.accelerator != "auto":
        return options.accelerator
    return "cuda" if torch.cuda.is_available() else "none"
