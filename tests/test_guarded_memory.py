"""No kernel touches memory outside the tensors it is given: they lie between guard pages."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.amx import emulator

if importlib.util.find_spec("coxcompile._native") is None:
    pytest.skip("the C++ kernels are not built", allow_module_level=True)

ROOT = Path(__file__).parents[1]


def run(which: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.guarded_calls", which],
        # Spinning threads would take minutes on a busy machine.
        env={**environment, "PYTHONPATH": str(ROOT / "tests"), "OMP_WAIT_POLICY": "passive"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def check_all(finished: subprocess.CompletedProcess[str]) -> None:
    lines = finished.stdout.splitlines() or [""]
    assert finished.returncode == 0, f"after {lines[-1]!r}: {finished.stderr[-3000:]}"
    assert lines[-1] == "done"
    assert len(lines) > 100


def test_no_access_outside_a_tensor() -> None:
    check_all(run("all", os.environ))


@pytest.mark.skipif(
    emulator.obstacle() is not None, reason=f"AMX is not emulated: {emulator.obstacle()}"
)
def test_no_tile_is_loaded_from_outside_a_tensor() -> None:
    finished = run("amx", emulator.environment())
    emulator.skip_unless_sites_were_found(finished)
    check_all(finished)


def test_an_access_outside_a_tensor_ends_the_process() -> None:
    finished = run("beyond", os.environ)
    assert finished.stdout == "reading beyond\n"
    assert finished.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in finished.stderr
