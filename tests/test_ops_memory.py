"""The op takes no memory for the weights, only for tokens, and never writes to weights."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from coxcompile.ops import CPU_KERNELS
from tests.resident_memory import HIDDEN, INTERMEDIATE, TOKENS, TOP_K, Report

if CPU_KERNELS != "native" or platform.system() != "Linux":
    pytest.skip("takes the C++ kernels, and Linux's /proc", allow_module_level=True)

ROOT = Path(__file__).parents[1]
WORKSPACE = max(TOKENS) * TOP_K * (HIDDEN + INTERMEDIATE) * 4
"""Bytes of float32 [choices, hidden] and [choices, intermediate]: kept from call to call."""


def report(layer: str) -> Report:
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.resident_memory", layer],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "2"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return Report(**json.loads(finished.stdout))


@pytest.mark.parametrize("layer", ["stacked", "transposed", "separate"])
def test_memory_grows_by_tokens_alone_and_weights_stay_as_they_are(layer: str) -> None:
    measured = report(layer)
    bound = measured.weights // 10
    # Each thread's panels and PyTorch's own allocations are beside the workspace.
    assert bound > 1.5 * WORKSPACE
    assert max(measured.kept) < bound
    assert measured.peak < bound
    assert measured.checksum_after == measured.checksum_before


def test_a_copy_of_the_weights_is_noticed() -> None:
    measured = report("copying")
    assert measured.peak > measured.weights
