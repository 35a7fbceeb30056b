"""The tests of co-execution on cuda, in place of the emulated accelerator; also a pytest plugin.

    python -m pytest -p gpu_check_on_cuda tests/test_coexecution.py

What is replaced: the options that tests compile with, and what they ask of the emulated device,
which need not be built. Not checked is the peak of memory, as PyTorch's counts cuBLAS' workspaces,
which are larger than the tests' models.
"""

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from coxcompile.planner.plan import Plan
from coxcompile.runtime import emulated
from coxcompile.runtime.accelerator import CudaAccelerator, Span, Traffic
from coxcompile.runtime.session import Session
from coxcompile.systems import system_named

ROOT = Path(__file__).parents[1]
ACCELERATOR = os.environ.get("COXMOE_CHECKED_ACCELERATOR", "cuda")
"""Another one ("emulated") shows that all of this works, without a GPU."""
RESERVED = 1 / 16
"""Share of the memory that policies leave free, as on the emulated accelerator."""


def pytest_configure() -> None:
    """Before any test is imported."""
    prepare()


def prepare() -> None:
    """Let ``tests`` be imported, and let what it shares compile for cuda."""
    # By its path: on the path of modules there may be another package of that name.
    package = ModuleType("tests")
    package.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = package
    if ACCELERATOR == "cuda":
        _replace_emulated()
    from tests import coexecution_cases  # type: ignore[import-not-found]

    coexecution_cases.emulated_options = options


def options(session: Session, vram: int, plan: Plan | str) -> dict[str, object]:
    """As ``tests.coexecution_cases.emulated_options``; the machine planned for is the same."""
    system = system_named("rtx6000ada-8452y")
    return {
        "accelerator": ACCELERATOR,
        "session": session,
        "vram": vram,
        "plan": plan,
        "hardware": replace(system, gpu_reserve_bytes=round(RESERVED * vram)),
    }


def _replace_emulated() -> None:
    if importlib.util.find_spec("coxcompile._emulated") is None:
        sys.modules["coxcompile._emulated"] = ModuleType("coxcompile._emulated")
    for name in ("load", "configure", "take_error"):
        setattr(emulated, name, _do_nothing)
    emulated.statistics = _empty_statistics  # type: ignore[assignment]
    take_recording = CudaAccelerator.take_recording

    def without_peak(self: CudaAccelerator) -> tuple[list[Span], Traffic]:
        spans, traffic = take_recording(self)
        return spans, replace(traffic, peak_bytes=0)

    CudaAccelerator.take_recording = without_peak  # type: ignore[method-assign]


def _do_nothing(*_arguments: Any, **_names: Any) -> None:
    pass


def _empty_statistics() -> SimpleNamespace:
    return SimpleNamespace(allocated_bytes=0)
