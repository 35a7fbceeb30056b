"""benchmarks/gpu_check.py and gpu_bench.py without a GPU: their ends, workers and reports."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

pytest.importorskip("triton")
pytest.importorskip("transformers")

import gpu_check
import gpu_main
import gpu_report
import gpu_workers
from gpu_cases import Case, Row, Section, SkippedError, run_case

ROOT = Path(__file__).parents[1]


def test_without_a_gpu_they_say_so_and_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "benchmarks" / script, "--json", path],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for script in ("gpu_check.py", "gpu_bench.py")
    ]
    for process in processes:
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert printed.strip() == gpu_main.NO_GPU
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sections kernels,none", "'none' is none of kernels"),
        ("--json nowhere/rows.json", "there is no folder 'nowhere'"),
    ],
)
def test_wrong_arguments(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_main.main(Path(), "", gpu_check.SECTIONS, arguments.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_all_sections_end_within_eight_minutes() -> None:
    assert gpu_main.TOTAL_SECONDS < 480
    assert sum(section.seconds for section in gpu_check.SECTIONS) < gpu_main.TOTAL_SECONDS
    options: Any = SimpleNamespace(time=1.0)
    for left in (0.0, 5.0, 60.0, 500.0):
        section = gpu_main._within(gpu_check.SECTIONS[0], left, options)
        assert section.seconds <= max(0.0, left - gpu_main.LEAST_SECONDS)


def outcome(figures: Any) -> Row:
    (row,) = run_case("section", Case("case", lambda: figures))
    return row


def test_errors_beyond_their_bound_fail() -> None:
    assert outcome({"error": 1.0, "bound": 1.0}).outcome == "passed"
    assert outcome({"error": 1.1, "bound": 1.0}).outcome == "failed"
    assert outcome({"error": float("nan"), "bound": 1.0}).outcome == "failed"
    assert outcome({}).outcome == "passed"
    parts = run_case("s", Case("c", lambda: {"a": {"x": 1.0}, "b": {"error": 2.0, "bound": 1.0}}))
    assert [(row.name, row.outcome) for row in parts] == [("c a", "passed"), ("c b", "failed")]


def test_what_a_case_raises_is_its_row() -> None:
    def skipped() -> Any:
        raise SkippedError("no such unit")

    def failed() -> Any:
        raise RuntimeError("first line\nsecond")

    assert run_case("s", Case("c", skipped)) == [Row("s", "c", "skipped", "no such unit")]
    (row,) = run_case("s", Case("c", failed))
    assert (row.outcome, row.reason) == ("failed", "RuntimeError: first line")


SCRIPT = """
import os, sys, time
sys.path.insert(0, {benchmarks!r})
import torch
from pathlib import Path
from gpu_cases import Case, Section
from gpu_main import main

torch.cuda.current_device = lambda: 0
def crash(): os._exit(7)
def hang(): time.sleep(60)
def cases(device):
    assert device == torch.device("cuda", 0)
    runs = [dict, crash, dict, hang, dict]
    return [Case(str(number), run) for number, run in enumerate(runs)]
SECTIONS = (Section("one", "One", cases, 60, 2, {workers}),)
if __name__ == "__main__":
    sys.exit(main(Path(__file__), "", SECTIONS))
"""


def test_a_crash_and_a_hang_lose_only_their_cases(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(benchmarks=str(ROOT / "benchmarks"), workers=2))
    section = Section("one", "One", lambda device: (), 60, 2, 2)
    rows = gpu_workers.run_section(script, section, tmp_path)
    by_name = {row.name: row for row in rows}
    assert len(rows) == 5
    assert {name for name, row in by_name.items() if row.outcome == "passed"} == {"0", "2", "4"}
    assert "status 7" in by_name["1"].reason
    assert "it hung, and was ended" in by_name["3"].reason


def test_when_time_is_up_cases_are_skipped(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(benchmarks=str(ROOT / "benchmarks"), workers=1))
    section = Section("one", "One", lambda device: (), 0, 2, 1)
    rows = gpu_workers.run_section(script, section, tmp_path)
    assert [row.outcome for row in rows] == ["skipped"] * 5


def test_a_worker_that_cannot_start_is_a_row(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('nothing installed')")
    (row,) = gpu_workers.run_section(script, Section("one", "One", list, 5, 2, 1), tmp_path)
    assert (row.outcome, row.name) == ("failed", "start")
    assert "nothing installed" in row.reason


def test_reports(tmp_path: Path) -> None:
    machine = {"device": "A GPU", "driver": "1"}
    rows = [
        Row("one", "a", "passed", "", {"error": 1e-7, "bound": 1e-5}, 1.0),
        Row("one", "b|c", "failed", "error 2 is beyond 1", {"error": 2.0, "bound": 1.0}),
        Row("two", "d", "passed", "", {"GB/s": 1234.5}),
    ]
    sections = [Section(name, name.title(), lambda device: (), 1) for name in ("one", "two")]
    text = gpu_report.markdown(machine, sections, rows)
    assert "### A GPU" in text
    assert "2 passed, 1 failed, 0 skipped" in text
    assert "| a | 1.0e-07 | 1.0e-05 | 1.0 | passed |" in text
    assert "| b\\|c | 2 | 1 | 0.0 | failed: error 2 is beyond 1 |" in text
    assert "|  | GB/s | s |" in text
    assert "| d | 1,234 | 0.0 |" in text
    gpu_report.write_json(tmp_path / "rows.json", machine, rows)
    saved = json.loads((tmp_path / "rows.json").read_text())
    assert saved["machine"] == machine
    assert saved["rows"][1]["reason"] == "error 2 is beyond 1"


@pytest.mark.parametrize(("found", "status"), [("passed", 0), ("failed", 1)])
def test_a_run_writes_both_reports(
    found: Any,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_main, "describe_machine", lambda: {"device": "A GPU", "driver": "1"})
    asked: list[Section] = []

    def run_section(script: Path, section: Section, folder: Path) -> list[Row]:
        asked.append(section)
        return [Row(section.name, "case", found, "why", {"x": 1.0})]

    monkeypatch.setattr(gpu_main, "run_section", run_section)
    rows, tables = tmp_path / "rows.json", tmp_path / "tables.md"
    arguments = f"--sections layer,kernels --json {rows} --markdown {tables} --time 0.5"
    assert gpu_main.main(Path(), "", gpu_check.SECTIONS, arguments.split()) == status
    assert [section.name for section in asked] == ["kernels", "layer"]
    assert asked[0].seconds == gpu_check.SECTIONS[0].seconds / 2
    assert [row["section"] for row in json.loads(rows.read_text())["rows"]] == ["kernels", "layer"]
    assert "### A GPU" in tables.read_text()
    assert ("case: why" in capsys.readouterr().out) == (found == "failed")
