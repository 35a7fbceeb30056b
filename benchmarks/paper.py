"""The paper's Fig. 2, 3a, 7, 8 and Table 3 as predictions, side by side with its own figures.

Nothing is measured: every policy plans each setting, and the planner's cost model says what that
plan would take on the paper's machines. Prints tables; `--output docs/paper` (`make paper`) writes
pictures and a page as well.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from paper_attention import predict_attention
from paper_coalescing import predict_coalescing
from paper_figures import draw
from paper_numbers import LABEL, RESIDENT_LIMITS, SYSTEM_I
from paper_page import page
from paper_placement import placement_sensitivity, predict_placement
from paper_report import Report, reasons
from paper_speedups import SETTINGS, predict_cell, sensitivity
from paper_steps import predict_steps
from paper_tables import sheets
from rich.console import Console
from rich.progress import track

from coxcompile.planner.records import save


def make_report(cells: int, console: Console) -> Report:
    """Predict everything; of Fig. 7 ``cells`` settings, spread evenly over all."""
    settings = [SETTINGS[index * len(SETTINGS) // cells] for index in range(cells)]
    speedups = [
        predict_cell(setting)
        for setting in track(settings, "Fig. 7", console=console, transient=True)
    ]
    return Report(
        label=LABEL,
        figure_2=tuple(predict_coalescing()),
        figure_3a=tuple(predict_attention()),
        figure_7=tuple(speedups),
        figure_7_sensitivity=tuple(
            sensitivity([cell for cell in speedups if cell.setting.system == SYSTEM_I])
        ),
        figure_8=tuple(row for model in RESIDENT_LIMITS for row in predict_placement(model)),
        figure_8_sensitivity=tuple(placement_sensitivity()),
        table_3=tuple(predict_steps()),
    )


def show(report: Report, console: Console) -> None:
    """Print all tables, and the reasons below theirs."""
    for name, sheet in sheets(report).items():
        console.print(sheet.rich())
        if name == "figure_7":
            for line in reasons(report):
                console.print(f"• {line}")
        if name == "table_3":
            for step in report.table_3:
                if step.why:
                    console.print(f"• {step.name} ({step.reading}): {step.why}")
        console.print()


def _cells(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= len(SETTINGS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number from 1 to {len(SETTINGS)}; use e.g. {len(SETTINGS)}"
        )
    return int(text)


def _json_path(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".json" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a .json file in a folder that exists; use e.g. paper.json"
        )
    return path


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; wrong values end the program before anything is predicted."""
    parser = argparse.ArgumentParser(description=f"The paper's figures, {LABEL}.")
    parser.add_argument(
        "--cells",
        type=_cells,
        default=len(SETTINGS),
        metavar="N",
        help=f"only N settings of Fig. 7 (default: all {len(SETTINGS)})",
    )
    parser.add_argument(
        "--json", type=_json_path, metavar="FILE", help="also write all predictions"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="also write README.md and pictures there"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Predicts, prints and writes as the command line says."""
    options = parse_arguments(arguments)
    console = Console()
    report = make_report(options.cells, console)
    show(report, console)
    if options.json:
        save(report, options.json)
        console.print(f"predictions written to {options.json}")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        pictures = draw(report, options.output)
        (options.output / "README.md").write_text(page(report, pictures))
        console.print(f"page and pictures written to {options.output}")


if __name__ == "__main__":
    main()
