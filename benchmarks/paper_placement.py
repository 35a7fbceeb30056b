"""Fig. 8 as a prediction: hottest experts resident against random ones, by how many VRAM holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from paper_machines import slowed
from paper_numbers import EAS_POINTS, RESIDENT_LIMITS, SYSTEM_I, table_3_workload
from paper_outcomes import STAGES
from paper_routing import placed_at_random, skewed_probabilities

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.models import model_named
from coxcompile.planner.plan import StagePlan
from coxcompile.planner.policies import make_plan
from coxcompile.planner.policies.search import (
    STAGING_EXPERTS,
    Configuration,
    Problem,
    configure,
    layer_seconds,
)
from coxcompile.systems import system_named

POINTS = 10
CPU_SLOWDOWNS = (1.0, 4.0, 16.0)
"""What the CPU's products and attention are divided by, to see what the gain depends on."""


@dataclass(frozen=True)
class Placement:
    """So many experts a layer resident; which others migrate and which are the CPU's is searched.

    Attributes:
        hit_ratio, random_hit_ratio: share of choices that find theirs in VRAM, with the hottest
            resident (EAS) and with random ones.
        tokens_per_second, random_tokens_per_second: predicted for each.
        gain: their quotient; prefill_gain, decode_gain: of each stage's time.
    """

    model: str
    resident: int
    hit_ratio: float
    random_hit_ratio: float
    tokens_per_second: float
    random_tokens_per_second: float
    gain: float
    prefill_gain: float
    decode_gain: float


def predict_placement(
    name: str, hardware: HardwareSpec | None = None, residents: Sequence[int] = ()
) -> list[Placement]:
    """On System I with Table 3's lengths, from no resident expert to all that decode's VRAM holds.

    The routing is made up: geometric, so that the hottest experts take 40 points more than their
    share at the number for which the paper reports that. All but the expert split is coxmoe's plan;
    prefill, whose intermediates leave less VRAM, has fewer resident where it must.

    Args:
        hardware: in place of System I.
        residents: numbers of resident experts, in place of those.
    """
    model, workload = model_named(name), table_3_workload()
    hardware = hardware or system_named(SYSTEM_I)
    limit = RESIDENT_LIMITS[name]
    routing = skewed_probabilities(model, limit, limit / model.experts + EAS_POINTS)
    plan = make_plan("coxmoe", model, hardware, workload)
    stages = []
    for stage in STAGES:
        problem = Problem(stage, model, hardware, workload, routing)
        stages.append((problem, _configured(problem, plan.stage(stage))))
    grid = np.linspace(0, _capacity(*stages[-1]), POINTS).astype(int).tolist()
    found = []
    for resident in residents or sorted({*grid, limit}):
        hottest = [_seconds(problem, place, resident) for problem, place in stages]
        random = [_seconds(problem, _at_random(place), resident) for problem, place in stages]
        found.append(
            Placement(
                model=name,
                resident=resident,
                hit_ratio=float(routing[0, :resident].sum() / routing[0].sum()),
                random_hit_ratio=resident / model.experts,
                tokens_per_second=workload.output_tokens / sum(hottest),
                random_tokens_per_second=workload.output_tokens / sum(random),
                gain=sum(random) / sum(hottest),
                prefill_gain=random[0] / hottest[0],
                decode_gain=random[1] / hottest[1],
            )
        )
    return found


@dataclass(frozen=True)
class PlacementSensitivity:
    """EAS's gain at the paper's number of resident experts if the CPU multiplies more slowly."""

    model: str
    resident: int
    cpu_slowdown: float
    gain: float


def placement_sensitivity() -> list[PlacementSensitivity]:
    """The gain grows once the CPU's experts cost by their tokens and not by reading weights."""
    system = system_named(SYSTEM_I)
    return [
        PlacementSensitivity(
            name,
            resident,
            slowdown,
            predict_placement(name, slowed(system, "cpu", slowdown), [resident])[0].gain,
        )
        for name, resident in RESIDENT_LIMITS.items()
        for slowdown in CPU_SLOWDOWNS
    ]


def _configured(problem: Problem, plan: StagePlan) -> Configuration:
    everything = problem.splits(problem.model.experts, 0)
    template = replace(plan, experts=everything, staging_experts=STAGING_EXPERTS)
    configuration = configure(problem, template, None)
    assert configuration is not None, "coxmoe's plan fits, and so it does without its experts"
    return configuration


def _at_random(configuration: Configuration) -> Configuration:
    return replace(configuration, costs=placed_at_random(configuration.costs))


def _capacity(problem: Problem, configuration: Configuration) -> int:
    return min(configuration.slots // problem.model.moe_layers, problem.model.experts)


def _seconds(problem: Problem, configuration: Configuration, resident: int) -> float:
    """Of the stage, with the best number of experts on the CPU."""
    resident = min(resident, _capacity(problem, configuration))
    cpu = np.arange(problem.model.experts - resident + 1)
    seconds = layer_seconds(problem, configuration, np.full_like(cpu, resident), cpu)
    layers = np.bincount(configuration.costs.row)
    step = configuration.other_seconds + (layers @ seconds).min()
    return float(step) * configuration.load.steps * configuration.load.blocks
