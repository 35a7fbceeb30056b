"""Beyond the paper: the best plan over everything the other policies choose from, and more."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.expert_costs import ExpertCosts, Floats
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import ExpertSplit, Plan, Stage, StagePlan
from coxcompile.planner.policies.coxmoe import templates, with_split
from coxcompile.planner.policies.fitting import DoesNotFitError
from coxcompile.planner.policies.reasons import explain_stage
from coxcompile.planner.policies.search import (
    Configuration,
    Problem,
    configure,
    layer_seconds,
    uniform_split,
)
from coxcompile.planner.workload import Workload

STAGES: tuple[Stage, ...] = ("prefill", "decode")
KV_SHARES = (0.0, 0.5, 1.0)
ATTENTION_PARTS = (1, 4)
CPU_ROWS_SHARES = (0.0, 0.25, 0.5)
BLOCKS_OF_BATCH = (1, 2, 4)


def best(
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
    *,
    others: Sequence[Plan] = (),
) -> Plan:
    """The plan with the least predicted time of both stages.

    Its candidates are coxmoe's, and: the cache split over both memories, attention in parts of a
    micro-batch, blocks of the batch, migrating experts whose weight rows the CPU shares, numbers of
    resident experts that differ from layer to layer (exactly, by dynamic programming), and the
    plans in ``others``, so that it is never worse than any of them. Both stages have blocks of one
    size, because a block's cache is held from its prefill to its last token.

    Raises:
        DoesNotFitError: no plan fits.
        ValueError: the machine has no GPU and ``others`` is empty.
    """
    if hardware.gpu is None and not others:
        raise ValueError(f"best: {hardware.name} has no GPU, so there is only policy cpu-only")
    problems = [Problem(stage, model, hardware, workload, probabilities) for stage in STAGES]
    chosen: list[_Found] = []
    least = float("inf")
    for plan in others:
        predictions = [problem.predict(plan.stage(problem.stage)) for problem in problems]
        seconds = sum(prediction.seconds for prediction in predictions)
        if not any(prediction.shortage for prediction in predictions) and seconds < least:
            least = seconds
            chosen = [
                _Found(prediction.seconds, f"as {plan.policy} does it", plan.stage(stage))
                for prediction, stage in zip(predictions, STAGES, strict=True)
            ]
    for block in sorted({-(-workload.batch // count) for count in BLOCKS_OF_BATCH}, reverse=True):
        stages: list[_Found] = []
        for problem in problems:
            named = [(plan.policy, plan.stage(problem.stage)) for plan in others]
            spent = sum(found.seconds for found in stages)
            stage = _search(problem, block, named, least - spent)
            if stage is None:
                break
            stages.append(stage)
        else:
            least, chosen = sum(found.seconds for found in stages), stages
    if not chosen:
        raise DoesNotFitError(
            f"best: no plan of {model.name} fits {hardware.name}; policy cpu-only says what is "
            "lacking"
        )
    reasons: list[str] = []
    for problem, found in zip(problems, chosen, strict=True):
        reasons.append(f"{problem.stage}: {found.origin}.")
        if found.plan.coalesced and hardware.gpu is not None:
            reasons += explain_stage(problem, found.plan)
    return Plan(
        policy="best",
        model=model.name,
        hardware=hardware.name,
        prefill=chosen[0].plan,
        decode=chosen[1].plan,
        reasons=tuple(reasons),
    )


@dataclass(frozen=True)
class _Found:
    """A stage's plan, its predicted seconds, and where it is from."""

    seconds: float
    origin: str
    plan: StagePlan


def _search(
    problem: Problem, block: int, named: Sequence[tuple[str, StagePlan]], least: float
) -> _Found | None:
    """The best stage plan of this block, if one takes less than ``least`` seconds."""
    best_found: _Found | None = None
    for policy, plan in named:
        if plan.block != block:
            continue
        prediction = problem.predict(plan)
        if not prediction.shortage and prediction.seconds < least:
            least = prediction.seconds
            best_found = _Found(least, f"as {policy} does it", plan)
    for template, configuration in _by_promise(problem, block, least):
        repetitions = configuration.load.steps * configuration.load.blocks
        found = uniform_split(problem, configuration)
        if found is not None and found[0] * repetitions < least:
            least = found[0] * repetitions
            plan = with_split(problem, template, *found[1:])
            best_found = _Found(least, "the same split in every layer", plan)
        if _bound(problem, configuration) * repetitions >= least:
            continue
        seconds, splits = per_layer_splits(problem, configuration)
        if seconds * repetitions < least:
            least = seconds * repetitions
            best_found = _Found(
                least, "each layer its own split", replace(template, experts=splits)
            )
    return best_found


def _by_promise(
    problem: Problem, block: int, least: float
) -> Iterator[tuple[StagePlan, Configuration]]:
    """Configurations that may beat ``least`` seconds, the most promising first."""
    configured = []
    costs: ExpertCosts | None = None
    for template in _templates(problem, block):
        configuration = configure(problem, template, costs)
        if configuration is not None:
            costs = configuration.costs
            repetitions = configuration.load.steps * configuration.load.blocks
            bound = _bound(problem, configuration) * repetitions
            if bound < least:
                configured.append((bound, template, configuration))
    configured.sort(key=lambda entry: entry[0])
    return ((template, configuration) for _, template, configuration in configured)


def _templates(problem: Problem, block: int) -> Iterator[StagePlan]:
    if problem.hardware.gpu is None:
        return
    for template in templates(problem, block):
        if template.kv_gpu_share:
            continue  # once is enough: the shares of the cache are chosen here
        attention_on_gpu, experts_on_gpu = template.attention == "gpu", template.staging_experts > 0
        for kv_share, parts, rows_share in itertools.product(
            KV_SHARES if attention_on_gpu else (0.0,),
            ATTENTION_PARTS if attention_on_gpu else (1,),
            CPU_ROWS_SHARES if experts_on_gpu else (0.0,),
        ):
            yield replace(
                template, kv_gpu_share=kv_share, attention_parts=parts, cpu_rows_share=rows_share
            )


def _bound(problem: Problem, configuration: Configuration) -> float:
    """A step's seconds if VRAM held every expert: no split of the configuration is faster."""
    experts = problem.model.experts
    cpu = np.arange(experts + 1)
    if not configuration.on_gpu:
        cpu = cpu[-1:]
    seconds = layer_seconds(problem, configuration, experts - cpu, cpu).min(axis=1)
    return configuration.other_seconds + float(_layer_counts(configuration) @ seconds)


def per_layer_splits(
    problem: Problem, configuration: Configuration
) -> tuple[float, tuple[ExpertSplit, ...]]:
    """The splits, layer by layer, with the least time of a step that VRAM's slots allow.

    Layers share nothing but the slots, so with T_l(n) the best time of layer l with n resident
    experts, f_l(m) = min over n of f_{l-1}(m - n) + T_l(n) is the least time of the first l layers
    in m slots.
    """
    experts = problem.model.experts
    rows = configuration.costs.row
    if not configuration.on_gpu or configuration.slots < 0 or len(rows) == 0:
        return float("inf"), ()
    resident, cpu = (
        grid.reshape(-1) for grid in np.meshgrid(*[np.arange(experts + 1)] * 2, indexing="ij")
    )
    possible = resident + cpu <= experts
    flat = np.full((len(configuration.costs.most_tokens), len(possible)), np.inf)
    flat[:, possible] = layer_seconds(problem, configuration, resident[possible], cpu[possible])
    seconds = flat.reshape(-1, experts + 1, experts + 1)
    by_resident, best_cpu = seconds.min(axis=2), seconds.argmin(axis=2)

    slots = min(configuration.slots, experts * len(rows))
    least = np.zeros(slots + 1)
    chosen = np.zeros((len(rows), slots + 1), dtype=np.int64)
    for layer, row in enumerate(rows):
        following = np.full(slots + 1, np.inf)
        for count in range(min(experts, slots) + 1):
            candidate = least[: slots + 1 - count] + by_resident[row, count]
            better = candidate < following[count:]
            following[count:][better] = candidate[better]
            chosen[layer, count:][better] = count
        least = following
    left = slots
    splits = []
    for layer in reversed(range(len(rows))):
        count = int(chosen[layer, left])
        on_cpu = int(best_cpu[rows[layer], count])
        migrating = experts - count - on_cpu
        splits.append(ExpertSplit(resident=count, migrating=migrating, cpu=on_cpu))
        left -= count
    return configuration.other_seconds + float(least[slots]), tuple(reversed(splits))


def _layer_counts(configuration: Configuration) -> Floats:
    """How many layers each distinct row stands for."""
    rows = len(configuration.costs.most_tokens)
    return np.bincount(configuration.costs.row, minlength=rows).astype(np.float64)
