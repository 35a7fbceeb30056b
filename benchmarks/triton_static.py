"""What the GPU kernels' machine code and data sheets tell, with no GPU: bounds, not measurements.

For each configuration in the table of configurations the kernels are compiled for the GPU it is
for: registers, spills, shared memory, occupancy, matrix instructions, asynchronous copies. Then a
roofline of each layer: the least time that data sheets allow. `--write-table` chooses the table
anew, by prediction.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from triton_static_report import LAYERS, KernelRow, kernel_rows, roofline_rows
from triton_static_sheets import LABEL, kernel_sheet, roofline_sheet

from coxcompile.gpu_analysis.generation import generate
from coxcompile.gpu_analysis.products import WEIGHT_BYTES
from coxcompile.gpu_analysis.targets import TARGETS, Target
from coxcompile.runtime.kernels.gpu.configurations import (
    STATIC_TABLE,
    Row,
    load_rows,
    save_rows,
)


def write_table(
    targets: Sequence[Target], weights: Sequence[str], path: Path, console: Console
) -> None:
    """Choose the rows of these targets and weights anew; others stay as they are."""
    kept = load_rows(path) if path.exists() else ()
    kept = tuple(
        row
        for row in kept
        if (row.device, row.weights)
        not in {(target.name, stored) for target in targets for stored in weights}
    )
    rows = generate(
        targets, weights, LAYERS, progress=lambda done: console.print(done, style="dim")
    )
    order = {name: number for number, name in enumerate(TARGETS)}
    stored_order = {name: number for number, name in enumerate(WEIGHT_BYTES)}

    def place(row: Row) -> tuple[int, int, int, int]:
        known = (order[row.device], stored_order[row.weights], row.tokens_per_expert)
        return *known, row.experts or 0

    save_rows(path, sorted((*kept, *rows), key=place))
    console.print(f"{len(rows)} rows, {LABEL}, written to {path}")


def report(
    targets: Sequence[Target], weights: Sequence[str], rows: Sequence[Row], console: Console
) -> tuple[list[KernelRow], str]:
    """Print all tables; returns the kernels' rows, and the tables as markdown."""
    kernels: list[KernelRow] = []
    pages = []
    for target in track(targets, "Compiling", console=console, transient=True):
        of_target = kernel_rows(target, weights, rows)
        kernels += of_target
        sheets = [kernel_sheet(target, of_target)]
        sheets += [
            roofline_sheet(target, kind, roofline_rows(target, kind, rows)) for kind in weights
        ]
        for sheet in sheets:
            console.print(sheet.rich())
            console.print()
        pages += [f"### {sheet.title}\n\n{sheet.markdown()}" for sheet in sheets]
    return kernels, "\n".join(pages)


JSON_FIELDS = (
    *("kernel", "config", "target", "registers", "spill_bytes", "shared_bytes", "occupancy"),
    *("mma", "mma_flops_ratio"),
)


def write_json(path: Path, kernels: Sequence[KernelRow]) -> None:
    """The kernels' rows: :data:`JSON_FIELDS` of each."""
    rows = [{name: getattr(row, name) for name in JSON_FIELDS} for row in kernels]
    path.write_text(json.dumps(rows, indent=2) + "\n")


def _names(text: str, known: Sequence[str], what: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(
            f"no {what} {unknown[0]!r}; use one or more of {','.join(known)}"
        )
    return names


def _targets(text: str) -> list[Target]:
    return [TARGETS[name] for name in _names(text, list(TARGETS), "target")]


def _weights(text: str) -> list[str]:
    return _names(text, list(WEIGHT_BYTES), "type of weights")


def _path(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not in a folder that exists; use e.g. a.json"
        )
    return path


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; wrong values end the program before anything is compiled."""
    parser = argparse.ArgumentParser(description=f"The GPU kernels without a GPU: {LABEL}.")
    parser.add_argument(
        "--targets",
        type=_targets,
        default=list(TARGETS.values()),
        metavar="NAMES",
        help=f"of {','.join(TARGETS)} (default: all)",
    )
    parser.add_argument(
        "--weights",
        type=_weights,
        metavar="NAMES",
        help=f"of {','.join(WEIGHT_BYTES)} (default: bfloat16; all for --write-table)",
    )
    parser.add_argument("--json", type=_path, metavar="FILE", help="also write the kernels' rows")
    parser.add_argument(
        "--markdown",
        type=_path,
        metavar="FILE",
        help="also write the tables as docs/gpu.md has them",
    )
    parser.add_argument(
        "--table",
        type=_path,
        default=STATIC_TABLE,
        metavar="FILE",
        help="of configurations (default: the one in the package)",
    )
    parser.add_argument(
        "--write-table",
        action="store_true",
        help="choose the table's configurations first: minutes of compiling",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles, prints and writes as the command line says."""
    options = parse_arguments(arguments)
    console = Console()
    if options.write_table:
        write_table(options.targets, options.weights or list(WEIGHT_BYTES), options.table, console)
    weights = options.weights or ["bfloat16"]
    kernels, page = report(options.targets, weights, load_rows(options.table), console)
    if options.json:
        write_json(options.json, kernels)
        console.print(f"{len(kernels)} rows, {LABEL}, written to {options.json}")
    if options.markdown:
        options.markdown.write_text(page)
        console.print(f"tables, {LABEL}, written to {options.markdown}")


if __name__ == "__main__":
    main()
