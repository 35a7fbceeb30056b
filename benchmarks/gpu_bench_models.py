"""End to end on a model that fits the GPU: eager, Inductor, coxmoe, and coxmoe on the CPU alone."""

import functools
from functools import partial
from typing import Any

import torch
from gpu_bench_generation import Race, Sizes
from gpu_cases import Case, Figures

from coxcompile.detection import detect_system
from coxcompile.hardware import HardwareSpec
from coxcompile.runtime.session import Session

SIZES = Sizes(layers=4, batch=32, prompt=128, steps=8)
ROUNDS = 5
EAGER = "eager on the GPU"


def model_cases(device: torch.device) -> list[Case]:
    """Each is prepared by itself, so that one that fails leaves the others."""
    contenders = {
        EAGER: _eager,
        "Inductor on the GPU": _inductor,
        "coxmoe on the GPU": _coxmoe,
        "coxmoe, CPU only": _cpu_only,
    }
    prepared = [Case(name, partial(make, device)) for name, make in contenders.items()]
    measured = Case("generating:", partial(_measure, device), always=True)
    return [*prepared, measured]


@functools.cache
def machine() -> HardwareSpec:
    """This one, by its calibration file or measured in some seconds."""
    return detect_system()


@functools.cache
def _race(device: torch.device) -> Race:
    return Race(SIZES, device)


def _eager(device: torch.device) -> Figures:
    race = _race(device)
    return race.prepare(EAGER, race.on_device, device)


def _inductor(device: torch.device) -> Figures:
    race = _race(device)
    compiled: Any = torch.compile(race.on_device, dynamic=False)
    return race.prepare("Inductor on the GPU", compiled, device)


def _coxmoe(device: torch.device) -> Figures:
    session = Session(record=True)
    options: dict[str, Any] = {"accelerator": "cuda", "hardware": machine(), "session": session}
    return _prepare("coxmoe on the GPU", device, options, session)


def _cpu_only(device: torch.device) -> Figures:
    return _prepare("coxmoe, CPU only", device, {"accelerator": "none"})


def _prepare(
    name: str, device: torch.device, options: dict[str, Any], session: Session | None = None
) -> Figures:
    race = _race(device)
    compiled: Any = torch.compile(
        race.on_host, backend="coxmoe", fullgraph=True, dynamic=False, options=options
    )
    return race.prepare(name, compiled, torch.device("cpu"), session)


def _measure(device: torch.device) -> Any:
    return _race(device).measure(ROUNDS, EAGER)
