"""Fig. 7 as predictions: coxmoe's tokens/s over each baseline's, in all of its 36 settings."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from paper_machines import slowed
from paper_numbers import BATCH, LENGTHS, MODELS, SPEEDUPS, SYSTEMS
from paper_outcomes import Outcome, outcome_of
from paper_reasons import why

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.models import model_named
from coxcompile.planner.policies import make_plan
from coxcompile.planner.workload import uniform_workload
from coxcompile.systems import system_named

OURS = "coxmoe"


@dataclass(frozen=True)
class Setting:
    """One group of Fig. 7's bars; the batch is 1024."""

    system: str
    model: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Speedup:
    """coxmoe over one baseline in one setting.

    Attributes:
        ratio: of tokens/s, both stages together.
        prefill_ratio, decode_ratio: of each stage's time.
        paper: the range that the paper reports for all settings together.
        ratio_without_overlap: the same if the baseline's resources worked one after the other.
        outcome: what the baseline is predicted to do.
        why: the sentence for a ratio outside that range; None inside.
    """

    baseline: str
    ratio: float
    prefill_ratio: float
    decode_ratio: float
    ratio_without_overlap: float
    paper: tuple[float, float]
    outcome: Outcome
    why: str | None


@dataclass(frozen=True)
class Cell:
    """One setting's predictions."""

    setting: Setting
    coxmoe: Outcome
    speedups: tuple[Speedup, ...]


SETTINGS = tuple(
    Setting(system, model, *lengths)
    for system, model, lengths in itertools.product(SYSTEMS.values(), MODELS, LENGTHS)
)


def predict_cell(
    setting: Setting, hardware: HardwareSpec | None = None, theirs: HardwareSpec | None = None
) -> Cell:
    """Plan and predict all policies of Fig. 7.

    Args:
        hardware: in place of the setting's system.
        theirs: what the baselines run on, if that is not the same.
    """
    model = model_named(setting.model)
    hardware = hardware or system_named(setting.system)
    workload = uniform_workload(BATCH, setting.input_tokens, setting.output_tokens)

    def outcome(policy: str, machine: HardwareSpec) -> Outcome:
        plan = make_plan(policy, model, machine, workload)
        return outcome_of(plan, model, machine, workload)

    ours = outcome(OURS, hardware)
    speedups = []
    for baseline, paper in SPEEDUPS.items():
        other = outcome(baseline, theirs or hardware)
        ratio = ours.tokens_per_second / other.tokens_per_second
        inside = paper[0] <= ratio <= paper[1]
        speedups.append(
            Speedup(
                baseline=baseline,
                ratio=ratio,
                prefill_ratio=other.prefill.seconds / ours.prefill.seconds,
                decode_ratio=other.decode.seconds / ours.decode.seconds,
                ratio_without_overlap=other.seconds_without_overlap / ours.seconds,
                paper=paper,
                outcome=other,
                why=None if inside else why(ratio, paper, ours, other),
            )
        )
    return Cell(setting, ours, tuple(speedups))


@dataclass(frozen=True)
class Spread:
    """Ratios over one baseline of several cells together."""

    assumption: str
    baseline: str
    least: float
    median: float
    most: float
    below: int
    inside: int
    above: int


def spreads(assumption: str, cells: Sequence[Cell], *, overlap: bool = True) -> list[Spread]:
    """The ratios of ``cells``, a record for each baseline; ``overlap``: the baselines' own."""
    found = []
    for baseline, (low, high) in SPEEDUPS.items():
        ratios = [
            speedup.ratio if overlap else speedup.ratio_without_overlap
            for cell in cells
            for speedup in cell.speedups
            if speedup.baseline == baseline
        ]
        below, above = sum(r < low for r in ratios), sum(r > high for r in ratios)
        inside = len(ratios) - below - above
        counts = {"below": below, "inside": inside, "above": above}
        least, most = min(ratios), max(ratios)
        found.append(Spread(assumption, baseline, least, statistics.median(ratios), most, **counts))
    return found


def sensitivity(cells: Sequence[Cell]) -> list[Spread]:
    """How the ratios of ``cells`` move when one assumption is changed.

    It shows what the distance to the paper's figures may come from; nothing is fitted.
    """
    found = spreads("as described", cells)
    found += spreads("baselines overlap nothing", cells, overlap=False)
    for assumption, (for_ours, for_theirs) in ASSUMPTIONS.items():
        changed = []
        for cell in cells:
            system = system_named(cell.setting.system)
            machines = slowed(system, for_ours), slowed(system, for_theirs)
            changed.append(predict_cell(cell.setting, *machines))
        found += spreads(assumption, changed)
    return found


ASSUMPTIONS: dict[str, tuple[str, str]] = {
    "half the link's bandwidth": ("link", "link"),
    "half the GPU's efficiency at products": ("gpu", "gpu"),
    "half the CPU's efficiency at products": ("cpu", "cpu"),
    "half the host memory's bandwidth": ("host", "host"),
    "half the GPU's efficiency at products, baselines only": ("", "gpu"),
    "half the host memory's bandwidth, baselines only": ("", "host"),
}
"""What is slower: for coxmoe, for the baselines."""
