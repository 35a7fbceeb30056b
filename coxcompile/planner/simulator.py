"""Carrying out a plan event by event on a machine's resources."""

from collections.abc import Sequence

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.cost_model import costs_of
from coxcompile.planner.event_queue import run_tasks
from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.memory import memory_use
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Plan, Stage, StagePlan
from coxcompile.planner.simulated_memory import buffer_sizes
from coxcompile.planner.simulation import PlanSimulation, Simulation
from coxcompile.planner.simulation_tasks import STEPS, StageTasks
from coxcompile.planner.stage_load import stage_load
from coxcompile.planner.timeline import TimelineTask, busy_fractions
from coxcompile.planner.workload import Workload

TASKS_AT_ONCE = 40_000
"""Tasks up to which all layers of a step are simulated; beyond, fewer layers stand for all."""


def simulate(
    plan: Plan,
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
    *,
    layers: int | None = None,
    hottest_first: bool = True,
) -> PlanSimulation:
    """Carry out both stages of ``plan``; see :func:`simulate_stage`."""
    prefill, decode = (
        simulate_stage(
            *(plan.stage(stage), stage, model, hardware, workload, probabilities),
            layers=layers,
            hottest_first=hottest_first,
        )
        for stage in ("prefill", "decode")
    )
    seconds = prefill.seconds + decode.seconds
    return PlanSimulation(prefill, decode, workload.output_tokens / seconds)


def simulate_stage(
    plan: StagePlan,
    stage: Stage,
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
    *,
    layers: int | None = None,
    hottest_first: bool = True,
) -> Simulation:
    """Carry out one stage of a plan (paper §4.2; docs/simulator.md has the rules).

    Args:
        probabilities: [MoE layers, E], as for ``cost_model.predict``.
        layers: how many layers to simulate, spread evenly over the model; None: all, if a step has
            at most ``TASKS_AT_ONCE`` tasks, else as many as do. Each layer left out is taken to
            last as long as the simulated ones after the first do on average.
        hottest_first: the hottest experts of ``probabilities`` are resident; else the first ones.

    Raises:
        ValueError: the plan cannot be carried out; the message names the field and the remedy.
    """
    load = stage_load(workload, stage, plan)
    _check(plan, model, hardware, layers)
    costs = costs_of(plan, model, hardware, load, probabilities, hottest_first=hottest_first)
    use = memory_use(plan, model, hardware, workload, load, costs)
    sizes = buffer_sizes(plan, model, hardware, load, use)
    stage_tasks = StageTasks(plan, model, hardware, load, costs, sizes)
    chosen = _spread(model.layers, layers or TASKS_AT_ONCE // stage_tasks.tasks_in_layer())
    stage_tasks.add_steps(chosen)
    outcome = run_tasks(stage_tasks.tasks, stage_tasks.pools())
    tasks = tuple(
        TimelineTask(
            name=span.task.name,
            resource=span.task.resource or "",
            step=span.task.step,
            layer=span.task.layer,
            micro_batch=span.task.micro_batch,
            start=span.start,
            end=span.end,
        )
        for span in outcome.spans
    )
    start, end = (
        max(task.end for task in tasks if task.layer is None and task.step == step)
        for step in range(STEPS)
    )
    step_seconds = end - start + (model.layers - len(chosen)) * _mean_layer(tasks, chosen)
    return Simulation(
        stage=stage,
        seconds=load.steps * load.blocks * step_seconds,
        step_seconds=step_seconds,
        layers=chosen,
        tasks=tasks,
        busy=busy_fractions(tasks, start, end),
        vram=((0.0, sizes.static), *((at, sizes.static + held) for at, held in outcome.memory)),
    )


def _spread(layers: int, count: int) -> tuple[int, ...]:
    """At least three layers if there are, the first and the last among them."""
    count = min(max(count, 3), layers)
    return tuple(round(index * (layers - 1) / max(count - 1, 1)) for index in range(count))


def _mean_layer(tasks: Sequence[TimelineTask], layers: Sequence[int]) -> float:
    """Mean seconds of the last step's layers from the second on, from end to end."""
    if len(layers) == 1:
        return 0.0
    first, last = (
        max(task.end for task in tasks if task.step == STEPS - 1 and task.layer == layer)
        for layer in (layers[0], layers[-1])
    )
    return (last - first) / (len(layers) - 1)


def _check(plan: StagePlan, model: ModelSpec, hardware: HardwareSpec, layers: int | None) -> None:
    if layers is not None and layers < 1:
        raise ValueError(f"layers is {layers}, but must be 1 or more; None simulates what it takes")
    if len(plan.experts) != model.moe_layers:
        raise ValueError(
            f"experts has {len(plan.experts)} splits, but {model.name} has {model.moe_layers} "
            "layers with experts"
        )
    if plan.disk_share and not hardware.disk_bytes_per_second:
        raise ValueError(f"the plan keeps weights on disk, but {hardware.name} has none")
    most = max((split.migrating for split in plan.experts), default=0)
    needed = min(most, 1) if plan.coalesced else 2 * most
    if plan.staging_experts < needed:
        why = "fetched" if plan.coalesced else "fetched a layer ahead of the one before"
        raise ValueError(
            f"staging_experts is {plan.staging_experts}, but {most} migrating experts of a layer "
            f"are {why}: it must be {needed} or more"
        )
