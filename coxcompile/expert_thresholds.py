"""The thresholds between the CPU kernel's loops that are in force here, and those calibrated."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Literal

import torch

from coxcompile.detection import calibration_file
from coxcompile.hardware import ExpertThresholds, HardwareSpec
from coxcompile.machine import DetectionError, this_machine
from coxcompile.ops import CPU_KERNELS
from coxcompile.planner.records import RecordError, load

Loop = Literal["columns", "transposed panels", "panels"]


def expert_loops() -> tuple[Loop, ...]:
    """The loops, beside that of few tokens, which the C++ kernel has for bfloat16 here.

    "columns" are for weights as ``nn.Linear`` stores them, "transposed panels" for transposed ones,
    "panels" for both.
    """
    return tuple(torch.ops.coxmoe.expert_loops()) if CPU_KERNELS == "native" else ()


def thresholds_in_force() -> ExpertThresholds:
    """What the C++ kernel goes by now; it must be there."""
    columns, last_vector, panels = torch.ops.coxmoe.expert_thresholds()
    instruction_set = torch.ops.coxmoe.cpu_instruction_sets()["bfloat16"]
    return ExpertThresholds(
        columns=columns,
        last_vector=last_vector,
        panels=panels,
        kernels=(instruction_set, *expert_loops()),
    )


def set_thresholds(thresholds: ExpertThresholds) -> None:
    """Put them in force in this process; a loop that the processor does not have stays unused."""
    torch.ops.coxmoe.set_expert_thresholds(
        thresholds.columns, thresholds.last_vector, thresholds.panels
    )


@contextlib.contextmanager
def restored_thresholds() -> Iterator[ExpertThresholds]:
    """Gives those in force, and puts them in force again at the end, however that comes."""
    before = thresholds_in_force()
    try:
        yield before
    finally:
        set_thresholds(before)


@functools.cache
def apply_calibrated_thresholds() -> str:
    """Put this machine's calibrated thresholds in force, if it has any; once a process.

    They are read from the file that ``coxmoe calibrate`` writes for bfloat16. Thresholds set before
    are replaced.

    Returns:
        Where those in force come from, and why not from there; for people.

    Raises:
        RecordError: the calibration file is damaged.
    """
    if not expert_loops():
        return "built in; there is one loop alone"
    path = calibration_file()
    if not path.exists():
        return f"built in; there is no {path} from `coxmoe calibrate`"
    try:
        spec = load(HardwareSpec, path)
    except RecordError as error:
        raise RecordError(f"{error}; run `coxmoe calibrate` again, or remove the file") from None
    if obstacle := _obstacle(spec):
        return f"built in; {path} {obstacle}"
    assert spec.expert_thresholds is not None
    set_thresholds(spec.expert_thresholds)
    return f"{spec.source}, from {path}"


def _obstacle(spec: HardwareSpec) -> str | None:
    """Why the file ``spec`` is from has no thresholds for here."""
    if spec.expert_thresholds is None:
        return "has none; run `coxmoe calibrate`, not --quick, in bfloat16"
    try:
        cpu = this_machine().cpu
    except DetectionError as error:
        return f"cannot be told to be this machine's: {error}"
    if spec.cpu.name != cpu:
        return f"is of {spec.cpu.name!r}, not of {cpu!r}; run `coxmoe calibrate` here"
    if spec.expert_thresholds.kernels != (here := thresholds_in_force().kernels):
        return (
            f"is for {', '.join(spec.expert_thresholds.kernels)}, but this process has "
            f"{', '.join(here)}"
        )
    return None
