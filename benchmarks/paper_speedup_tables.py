"""The tables of Fig. 7 beside the paper's ranges."""

from paper_numbers import BATCH, LABEL, SPEEDUPS, SYSTEM_I, SYSTEMS
from paper_report import Report
from paper_sheets import Sheet, between, times


def speedup_sheet(report: Report) -> Sheet:
    """A row a setting."""
    numerals = {name: numeral for numeral, name in SYSTEMS.items()}
    columns = ["system", "model", "input→output", "coxmoe, tokens/s"]
    for baseline, bounds in SPEEDUPS.items():
        columns += [f"over {baseline} (paper: {between(bounds)})", "prefill, decode alone"]
    return Sheet(
        title=f"Fig. 7: coxmoe over the baselines ({LABEL})",
        note=f"Ratios of tokens/s, batch {BATCH}; - below and + above the paper's range",
        columns=tuple(columns),
        rows=[
            (
                f"{numerals[cell.setting.system]} ({cell.setting.system})",
                cell.setting.model,
                f"{cell.setting.input_tokens}→{cell.setting.output_tokens}",
                f"{cell.coxmoe.tokens_per_second:.0f}",
                *(
                    text
                    for speedup in cell.speedups
                    for text in (
                        times(speedup.ratio) + _side(speedup.ratio, speedup.paper),
                        f"{times(speedup.prefill_ratio)}, {times(speedup.decode_ratio)}",
                    )
                ),
            )
            for cell in report.figure_7
        ],
    )


def _side(ratio: float, bounds: tuple[float, float]) -> str:
    if ratio < bounds[0]:
        return " -"
    return " +" if ratio > bounds[1] else ""


def sensitivity_sheet(report: Report) -> Sheet:
    """A row an assumption and baseline."""
    return Sheet(
        title=f"Fig. 7 under other assumptions ({LABEL})",
        note=(
            f"Ratios over all lengths and models on {SYSTEM_I}, and how many of them lie below, "
            "inside and above the paper's range"
        ),
        columns=("assumption", "over", "least", "median", "most", "below", "inside", "above"),
        rows=[
            (
                row.assumption,
                row.baseline,
                *(times(value) for value in (row.least, row.median, row.most)),
                *(str(count) for count in (row.below, row.inside, row.above)),
            )
            for row in report.figure_7_sensitivity
        ],
    )
