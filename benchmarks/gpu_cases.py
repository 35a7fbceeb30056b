"""What gpu_check.py and gpu_bench.py consist of: sections of cases, each of which gives rows."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

Figures = Mapping[str, float]
"""By what they are. One called "error" must not be beyond one called "bound"."""
Outcome = Literal["passed", "failed", "skipped"]


class SkippedError(Exception):
    """A case that cannot be run here; the message says why."""


@dataclass(frozen=True)
class Case:
    """One thing to check or to measure.

    Attributes:
        name: of its row.
        run: its figures, or those of several rows by what is added to the name.
        always: also when the section's time is spent: what other cases have prepared is lost else.
    """

    name: str
    run: Callable[[], Figures | Mapping[str, Figures]]
    always: bool = False


@dataclass(frozen=True)
class Row:
    """What a case gave.

    Attributes:
        section: by name.
        name: of the case, and of which part of it.
        outcome: a case that raises, or whose error is beyond its bound, has failed.
        reason: why it failed or was skipped.
        figures: of the case.
        seconds: that it took, compiling included.
    """

    section: str
    name: str
    outcome: Outcome
    reason: str = ""
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Section:
    """Cases that share a time budget.

    Attributes:
        name: as the command line takes it.
        title: as the report has it.
        cases: made in the process that runs them, for a device.
        seconds: after which the cases that are left are skipped.
        case_seconds: after which a case counts as hanging, and its process is ended.
        workers: processes that share the cases; 1 where time is measured.
    """

    name: str
    title: str
    cases: Callable[[torch.device], Sequence[Case]]
    seconds: float
    case_seconds: int = 60
    workers: int = 1


def run_case(section: str, case: Case) -> list[Row]:
    """Its rows; whatever it raises becomes one."""
    started = time.monotonic()
    try:
        result = case.run()
    except SkippedError as reason:
        return [Row(section, case.name, "skipped", str(reason))]
    except Exception as error:
        seconds = time.monotonic() - started
        return [Row(section, case.name, "failed", _reason(error), seconds=seconds)]
    seconds = time.monotonic() - started
    parts = _parts(result)
    return [
        _judged(section, " ".join(filter(None, (case.name, part))), figures, seconds / len(parts))
        for part, figures in parts.items()
    ]


def _parts(result: Figures | Mapping[str, Figures]) -> dict[str, Figures]:
    parts: dict[str, Figures] = {}
    whole: dict[str, float] = {}
    for name, value in result.items():
        if isinstance(value, Mapping):
            parts[name] = value
        else:
            whole[name] = value
    return parts or {"": whole}


def _judged(section: str, name: str, figures: Figures, seconds: float) -> Row:
    # Not "error > bound": NaN is beyond every bound.
    if "error" in figures and not figures["error"] <= figures["bound"]:
        reason = f"error {figures['error']:.1e} is beyond {figures['bound']:.1e}"
        return Row(section, name, "failed", reason, figures, seconds)
    return Row(section, name, "passed", "", figures, seconds)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Dynamo's begin with "backend='coxmoe' raised:".
    told = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {told[:300]}"
