"""The machine at hand as a HardwareSpec: its calibration file, else a quick measurement."""

import os
from pathlib import Path

from coxcompile.hardware import Dtype, HardwareSpec
from coxcompile.machine import DetectionError, this_machine
from coxcompile.planner.records import load

CACHE = Path("~/.cache/coxcompile")


def calibration_file(dtype: Dtype = "bfloat16") -> Path:
    """Where ``coxmoe calibrate`` writes: the file COXMOE_HARDWARE names, else one in CACHE."""
    named = os.environ.get("COXMOE_HARDWARE")
    if named:
        return Path(named)
    suffix = "" if dtype == "bfloat16" else f"-{dtype}"
    return CACHE.expanduser() / f"hardware{suffix}.json"


def detect_system(dtype: Dtype = "bfloat16") -> HardwareSpec:
    """This machine, for models of ``dtype``.

    All of it is the calibration file's. Without that file, names and memory sizes are the operating
    system's, and speeds are measured quickly, in about ten seconds. Disks are not measured, so
    neither has one.

    Raises:
        DetectionError: the calibration file is of another machine or dtype, COXMOE_HARDWARE names
            none, or the machine does not say what it is. The message has the remedy.
        RecordError: the calibration file is damaged.
    """
    path = calibration_file(dtype)
    if path.exists():
        return _for_this_machine(load(HardwareSpec, path), path, dtype)
    if os.environ.get("COXMOE_HARDWARE"):
        raise DetectionError(
            f"COXMOE_HARDWARE is {str(path)!r}, but there is no such file: run `coxmoe calibrate` "
            "to write it, or unset COXMOE_HARDWARE"
        )
    # Imported here: it takes torch, which reading a file does not.
    from coxcompile.calibration import calibrate

    return calibrate(progress=False, quick=True, dtype=dtype)


def _for_this_machine(spec: HardwareSpec, path: Path, dtype: Dtype) -> HardwareSpec:
    if spec.dtype != dtype:
        raise DetectionError(
            f"{path} has speeds for {spec.dtype}, not for {dtype}: run `coxmoe calibrate --dtype "
            f"{dtype}`"
        )
    machine = this_machine()
    if spec.name != machine.name:
        raise DetectionError(
            f"{path} describes {spec.name!r}, but this machine is {machine.name!r}: run `coxmoe "
            "calibrate` here"
        )
    return spec
