"""Processes that run the cases of a section: one that crashes or hangs loses only its case."""

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Row, Section, run_case

LOST = 3
"""Exit status of a worker whose GPU context an error has made useless."""
START_SECONDS = 15
"""That a worker may take to import what it needs."""
_LOST_CONTEXT = "the GPU's context is lost: "


def run_section(script: Path, section: Section, folder: Path) -> list[Row]:
    """Run the section's cases in workers, within its seconds and those of one more case.

    Args:
        script: started as ``script --worker ...`` it calls :func:`work`.
        section: one of the script's.
        folder: for what the workers write.
    """
    with ThreadPoolExecutor(section.workers) as pool:
        parts = pool.map(
            lambda first: list(_supervised(script, section, folder, first)),
            range(section.workers),
        )
    return [row for part in parts for row in part]


def work(sections: Sequence[Section], options: argparse.Namespace) -> None:
    """Be a worker: every ``options.step``-th case from ``options.first`` on, until time is up."""
    section = next(one for one in sections if one.name == options.worker)
    deadline = time.monotonic() + options.seconds
    cases = section.cases(torch.device("cuda", torch.cuda.current_device()))
    with options.rows.open("a", buffering=1) as output:
        print(json.dumps({"cases": len(cases)}), file=output)
        for index in range(options.first, len(cases), options.step):
            case = cases[index]
            print(json.dumps({"begun": index, "name": case.name}), file=output)
            if time.monotonic() > deadline and not case.always:
                rows = [Row(section.name, case.name, "skipped", "no time was left for it")]
            else:
                faulthandler.dump_traceback_later(section.case_seconds, exit=True)
                rows = run_case(section.name, case)
                lost = _lost()
                faulthandler.cancel_dump_traceback_later()
                if lost:
                    rows.append(Row(section.name, case.name, "failed", lost))
            ended = {"ended": index, "rows": [asdict(row) for row in rows]}
            print(json.dumps(ended), file=output)
            if rows[-1].reason.startswith(_LOST_CONTEXT):
                sys.exit(LOST)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of workers; users have no use for them."""
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)


def _supervised(script: Path, section: Section, folder: Path, first: int) -> Iterator[Row]:
    """Rows of a worker, and of the one that goes on where it ended before its time."""
    deadline = time.monotonic() + section.seconds
    stem = folder / f"{section.name}-{first}"
    while True:
        rows, log = stem.with_suffix(".jsonl"), stem.with_suffix(".log")
        rows.unlink(missing_ok=True)
        left = max(0.0, deadline - time.monotonic())
        status = _run_worker(script, section, first, left, rows, log)
        entries = [json.loads(line) for line in _lines(rows)]
        yield from _rows_of(entries)
        if status == 0:
            return
        begun = [entry for entry in entries if "begun" in entry]
        if not begun:
            yield Row(section.name, "start", "failed", _end_of(log, status))
            return
        if "begun" in entries[-1]:
            yield Row(section.name, begun[-1]["name"], "failed", _end_of(log, status))
        first = begun[-1]["begun"] + section.workers
        if first >= entries[0]["cases"]:
            return


def _run_worker(
    script: Path, section: Section, first: int, seconds: float, rows: Path, log: Path
) -> int:
    options = {
        "worker": section.name,
        "first": first,
        "step": section.workers,
        "seconds": seconds,
        "rows": rows,
    }
    command = [sys.executable, str(script)]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    threads = max(1, len(os.sched_getaffinity(0)) // section.workers)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            return process.wait(seconds + section.case_seconds + START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _rows_of(entries: Sequence[dict[str, Any]]) -> Iterator[Row]:
    for entry in entries:
        for row in entry.get("rows", ()):
            yield Row(**row)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _end_of(log: Path, status: int) -> str:
    """Why a worker ended: how, and the last line that it wrote."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    hung = next((line for line in lines if line.startswith("Timeout (")), None)
    last = "it hung, and was ended" if hung else (lines[-1][:200] if lines else "it wrote nothing")
    return f"its process ended with status {status}: {last}"


def _lost() -> str | None:
    """After a kernel's illegal access every call fails: also of cases that have nothing to do."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError as error:
        return _LOST_CONTEXT + str(error).splitlines()[0]
    return None
