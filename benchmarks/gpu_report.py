"""What gpu_check.py and gpu_bench.py write: rows as JSON, and tables for docs/gpu.md."""

import datetime
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_cases import Row, Section

from coxcompile.machine import this_machine


def describe_machine() -> dict[str, str]:
    """The GPU, its driver, and versions of everything that figures depend on."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    versions = {}
    for package in ("torch", "triton", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": properties.name,
        "target": f"sm_{properties.major}{properties.minor}",
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "multiprocessors": str(properties.multi_processor_count),
        "driver": _driver(),
        "CUDA": str(torch.version.cuda),
        **versions,
        "Python": platform.python_version(),
        "CPU": this_machine().cpu,
        "date": datetime.date.today().isoformat(),
    }


def write_json(path: Path, machine: Mapping[str, str], rows: Sequence[Row]) -> None:
    """One object: "machine" and "rows"."""
    content = {"machine": machine, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def markdown(machine: Mapping[str, str], sections: Sequence[Section], rows: Sequence[Row]) -> str:
    """What failed, then a table a section."""
    described = ", ".join(f"{name} {value}" for name, value in list(machine.items())[1:])
    lines = [f"### {machine['device']}", "", f"Measured on {machine['device']}: {described}.", ""]
    lines += [summary(rows), ""]
    for section in sections:
        mine = [row for row in rows if row.section == section.name]
        if mine:
            lines += [f"#### {section.title}", "", *_table(mine), ""]
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """One line: how many passed, failed and were skipped."""
    counts = Counter(row.outcome for row in rows)
    return ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped"))


def _table(rows: Sequence[Row]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row.figures))
    plain = all(row.outcome == "passed" for row in rows)
    heads = ["", *columns, "s", *([] if plain else ["outcome"])]
    rule = ["---", *["---:"] * (len(columns) + 1), *([] if plain else ["---"])]
    lines = [_line(heads), _line(rule)]
    for row in rows:
        figures = [_number(row.figures[name]) if name in row.figures else "" for name in columns]
        outcome = f"{row.outcome}: {row.reason}" if row.reason else row.outcome
        seconds = f"{row.seconds:.1f}"
        lines.append(_line([row.name, *figures, seconds, *([] if plain else [outcome])]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    finished = subprocess.run(command, capture_output=True, text=True)
    return finished.stdout.strip().splitlines()[0] if finished.stdout.strip() else "unknown"
