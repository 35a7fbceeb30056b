"""All predictions together, and the reasons that belong to them."""

from dataclasses import dataclass

from paper_attention import AttentionPlace
from paper_coalescing import Coalescing
from paper_placement import Placement, PlacementSensitivity
from paper_speedups import Cell, Spread
from paper_steps import StepOutcome


@dataclass(frozen=True)
class Report:
    """What ``--json`` writes."""

    label: str
    figure_2: tuple[Coalescing, ...]
    figure_3a: tuple[AttentionPlace, ...]
    figure_7: tuple[Cell, ...]
    figure_7_sensitivity: tuple[Spread, ...]
    figure_8: tuple[Placement, ...]
    figure_8_sensitivity: tuple[PlacementSensitivity, ...]
    table_3: tuple[StepOutcome, ...]


def reasons(report: Report) -> list[str]:
    """A line for each ratio of Fig. 7 outside the paper's range."""
    return [
        f"{_setting(cell)}, over {speedup.baseline}: {speedup.why}"
        for cell in report.figure_7
        for speedup in cell.speedups
        if speedup.why is not None
    ]


def _setting(cell: Cell) -> str:
    setting = cell.setting
    return f"{setting.model} on {setting.system}, {setting.input_tokens}→{setting.output_tokens}"
