"""The CPU kernels under AddressSanitizer: their own buffers, beside the tensors they are given.

What oneDNN compiles at run time is not instrumented; of that, guard pages see what leaves a tensor,
and the emulator of AMX what its tiles read and write.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping

import pytest
import sanitized_build
from sanitized_build import ROOT

from tests.amx import emulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
]

# The kernels of the package are those of the file that NATIVE names.
PROGRAM = """
import importlib.util, os, runpy, sys
find_spec = importlib.util.find_spec
def find(name, package=None):
    if name != "coxcompile._native":
        return find_spec(name, package)
    return importlib.util.spec_from_file_location(name, os.environ["NATIVE"])
importlib.util.find_spec = find
sys.argv = ["tests.guarded_calls", sys.argv[1]]
runpy.run_module("tests.guarded_calls", run_name="__main__")
"""


needs_emulator = pytest.mark.skipif(
    emulator.obstacle() is not None, reason=f"AMX is not emulated: {emulator.obstacle()}"
)


def environment(*preloaded: str) -> dict[str, str]:
    """With the sanitizer loaded, and what else is to be."""
    runtime = sanitized_build.runtime()
    if runtime is None:
        pytest.skip("g++ has no libasan.so (Debian: apt-get install libgcc-12-dev)")
    return {
        **os.environ,
        "LD_PRELOAD": " ".join((runtime, *preloaded)),
        # Python and PyTorch leave much to the end of the process.
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(ROOT / "tests"),
        "OMP_WAIT_POLICY": "passive",
    }


def with_amx() -> dict[str, str]:
    """And the emulator, which reads and writes for tiles by calls that the sanitizer checks."""
    library = str(emulator.library())
    return {**environment(library), emulator.EMULATOR: library}


def run(which: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, which],
        env={**environment, "NATIVE": str(sanitized_build.library())},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    emulator.skip_unless_sites_were_found(finished)
    return finished


def check_all(finished: subprocess.CompletedProcess[str]) -> None:
    last = (finished.stdout.splitlines() or [""])[-1]
    assert finished.returncode == 0, f"after {last!r}: {finished.stderr[:6000]}"
    assert last == "done"
    assert "AddressSanitizer" not in finished.stderr


def test_no_access_outside_a_buffer() -> None:
    check_all(run("all", environment()))


def test_an_access_outside_a_buffer_is_reported() -> None:
    finished = run("beyond-heap", environment())
    assert finished.returncode not in (0, -signal.SIGSEGV)
    assert "AddressSanitizer: heap-buffer-overflow" in finished.stderr
    assert "coxcompile::" in finished.stderr


@needs_emulator
def test_no_tile_is_loaded_from_outside_a_buffer() -> None:
    check_all(run("amx", with_amx()))


@needs_emulator
def test_a_tile_loaded_from_outside_a_buffer_is_reported() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.amx.single_instructions", "load", "ask"],
        env=with_amx(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert finished.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in finished.stderr
    assert "amx::Tiles::load" in finished.stderr
