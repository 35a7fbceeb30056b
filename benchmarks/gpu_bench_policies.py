"""Policies side by side, as examples/coexecution.py has them: weights are four times the VRAM."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from coexecution_policies import Subject, subjects
from gpu_bench_generation import Race, Sizes
from gpu_bench_models import machine
from gpu_cases import Case, Figures

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.model_spec import ModelSpec, model_from_config
from coxcompile.planner.simulator import simulate
from coxcompile.planner.workload import uniform_workload
from coxcompile.runtime.session import Session

SIZES = Sizes(layers=4, batch=64, prompt=128, steps=4)
WEIGHTS_OVER_VRAM = 4
RESERVED = 1 / 16
"""Share of that memory that plans leave free."""
ROUNDS = 3
NAMES = ("offloading", "moe-lightning", "flexgen", "coalescing", "cpu-only", "moe-gen")
"""In the order in which they are prepared, should time run out; "offloading" is coxmoe, without a
map of hot experts: random weights have none."""
REFERENCE = "cpu-only"


def policy_cases(device: torch.device) -> list[Case]:
    """Each policy is prepared by itself; one that does not fit, or fails, leaves the others."""
    known = {subject.name: subject for subject in subjects()}
    prepared = [Case(name, partial(prepare, known[name], device)) for name in NAMES]
    return [*prepared, Case("generating:", partial(measure, device), always=True)]


def prepare(subject: Subject, device: torch.device) -> Figures:
    """Plan, compile, and say what the simulator predicts."""
    race, spec, hardware = _setting(device)
    workload = uniform_workload(SIZES.batch, SIZES.prompt, SIZES.steps + 1)
    plan = subject.plan(spec, hardware, workload, None)
    assert hardware.gpu is not None
    session = Session(record=True)
    options: dict[str, Any] = {
        "accelerator": "cuda",
        "vram": hardware.gpu.memory_bytes,
        "plan": plan,
        "hardware": hardware,
        "session": session,
    }
    compiled: Any = torch.compile(
        race.on_host, backend="coxmoe", fullgraph=True, dynamic=False, options=options
    )
    predicted = simulate(plan, spec, hardware, workload)
    return {
        **race.prepare(subject.name, compiled, torch.device("cpu"), session),
        "predicted new tokens/s": predicted.tokens_per_second,
    }


def measure(device: torch.device) -> Mapping[str, Figures]:
    """All that are prepared, in turns."""
    return _setting(device)[0].measure(ROUNDS, REFERENCE)


@functools.cache
def _setting(device: torch.device) -> tuple[Race, ModelSpec, HardwareSpec]:
    race = Race(SIZES, device)
    # Only eager runs on it.
    race.drop_device_copy()
    spec = model_from_config(race.on_host.config, "Qwen3-30B-A3B's layers")
    hardware = machine()
    assert hardware.gpu is not None
    vram = spec.total_bytes // WEIGHTS_OVER_VRAM
    gpu = replace(hardware.gpu, memory_bytes=vram)
    return race, spec, replace(hardware, gpu=gpu, gpu_reserve_bytes=round(RESERVED * vram))
