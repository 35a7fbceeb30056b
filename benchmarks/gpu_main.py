"""The command line that gpu_check.py and gpu_bench.py have in common."""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from gpu_cases import Row, Section
from gpu_report import describe_machine, markdown, summary, write_json
from gpu_workers import add_options, run_section, work

NO_GPU = "no GPU was found: nothing was run"
TOTAL_SECONDS = 460
"""Of all sections together, whatever their own seconds are."""
LEAST_SECONDS = 10


def main(
    script: Path,
    description: str,
    sections: Sequence[Section],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run the sections, print and write their rows; the exit status: 1 if anything failed.

    Without a GPU it says so and gives 0.
    """
    options = _options(description, sections, arguments)
    if options.worker:
        work(sections, options)
        return 0
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    rows: list[Row] = []
    chosen = [section for section in sections if section.name in options.sections]
    end = time.monotonic() + TOTAL_SECONDS * options.time
    with tempfile.TemporaryDirectory() as folder:
        for section in chosen:
            started = time.monotonic()
            found = run_section(script, _within(section, end - started, options), Path(folder))
            rows += found
            seconds = time.monotonic() - started
            print(f"\n{section.title}: {summary(found)}, {seconds:.0f} s", flush=True)
            for row in found:
                if row.outcome == "failed":
                    print(f"  {row.name}: {row.reason}", flush=True)
            # After each section, so that a run that is ended leaves what it has.
            _write(options, machine, chosen, rows)
    print(f"\n{markdown(machine, chosen, rows)}\n{summary(rows)}")
    return int(any(row.outcome == "failed" for row in rows))


def _within(section: Section, left: float, options: argparse.Namespace) -> Section:
    """The section with what is left of all sections' time at most, its last case included."""
    seconds = max(0.0, min(section.seconds * options.time, left - LEAST_SECONDS))
    case_seconds = max(LEAST_SECONDS, min(section.case_seconds, int(left - seconds)))
    return replace(section, seconds=seconds, case_seconds=case_seconds)


def _write(
    options: argparse.Namespace,
    machine: dict[str, str],
    sections: Sequence[Section],
    rows: Sequence[Row],
) -> None:
    if options.json:
        write_json(options.json, machine, rows)
    if options.markdown:
        options.markdown.write_text(markdown(machine, sections, rows) + "\n")


def _options(
    description: str, sections: Sequence[Section], arguments: Sequence[str] | None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    names = [section.name for section in sections]
    parser.add_argument(
        "--sections",
        type=lambda text: text.split(","),
        default=names,
        help=f"some of {','.join(names)} (default: all)",
    )
    parser.add_argument(
        "--time", type=float, default=1.0, help="factor on the sections' seconds (default: 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write tables for docs/gpu.md to this file"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(names):
        parser.error(f"--sections: {unknown.pop()!r} is none of {', '.join(names)}")
    for path in filter(None, (options.json, options.markdown)):
        if not path.parent.is_dir():
            parser.error(f"{path}: there is no folder {str(path.parent)!r}; make it first")
    return options
