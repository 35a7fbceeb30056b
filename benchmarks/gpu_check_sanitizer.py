"""compute-sanitizer over a few small launches of the expert kernels.

compute-sanitizer --tool memcheck python benchmarks/gpu_check_sanitizer.py
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import torch
from gpu_cases import Case, Figures, Row, SkippedError, run_case
from gpu_check_kernels import cases_of
from gpu_check_variants import MEDIUM, Variant, variants

TOOLS = ("memcheck", "racecheck")
FOUND = 99
"""Exit status that stands for errors that the tool has found."""
NAMES = (
    "bfloat16",
    "int4 in 4 groups, interleaved, bias",
    "float8 by descriptors",
    "persistent by descriptors",
    "experts that are not here",
    "transposed, odd sizes",
)
SMALL = replace(MEDIUM, experts=5, top_k=2, hidden=128, intermediate=96, tokens=37)


def sanitizer_cases(device: torch.device) -> list[Case]:
    """A run under each tool."""
    return [Case(tool, partial(sanitized, tool)) for tool in TOOLS]


def sanitized(tool: str) -> Figures:
    """Nothing; what the tool finds is raised.

    Raises:
        SkippedError: compute-sanitizer is not on the path, or does not know this device.
        AssertionError: it found something, or the run failed; the message is its first line.
    """
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise SkippedError("compute-sanitizer is not on the path")
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), "--launch-timeout", "60"]
    command += ["--target-processes", "all", sys.executable, __file__]
    # Without the cache each tensor is an allocation, so that accesses beyond it are seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = (finished.stdout + finished.stderr).splitlines()
    if any("Device not supported" in line for line in lines):
        raise SkippedError("compute-sanitizer does not support this device")
    if finished.returncode:
        found = [line for line in lines if line.startswith("=========") and "ERROR" not in line]
        telling = [line for line in found if "COMPUTE-SANITIZER" not in line] or lines[-1:]
        raise AssertionError((telling or ["no output"])[0].strip("= "))
    return {}


def small_rows(device: torch.device) -> list[Row]:
    """The variants of :data:`NAMES`, on a small layer."""
    chosen = [(name, _small(variant)) for name, variant in variants() if name in NAMES]
    cases = cases_of(chosen, device)
    return [row for case in cases for row in run_case("sanitizer", case)]


def _small(variant: Variant) -> Variant:
    odd = variant.size.hidden % 8
    sizes = {"hidden": 67, "intermediate": 33} if odd else {}
    return replace(variant, size=replace(SMALL, **sizes))


if __name__ == "__main__":
    failed = [row for row in small_rows(torch.device("cuda")) if row.outcome == "failed"]
    for row in failed:
        print(f"{row.name}: {row.reason}")
    sys.exit(bool(failed))
