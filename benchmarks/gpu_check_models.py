"""All families end to end, divided between cuda and the CPU, and the co-execution tests' cases."""

import ast
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gpu_check_on_cuda
import pytest
import torch
from gpu_cases import Case, Figures

from coxcompile.runtime.session import Session

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "test_coexecution.py"
ERROR_BOUND = 1e-5
"""Of float32 models: logits, keys and values against the CPU's alone, as in the tests."""
GREATER_ERROR = 1.5
"""Times eager's own error against float32, on the CPU: bfloat16 models' may be so large."""
MOE_LAYERS = 3
VRAM_SHARES = {"coxmoe": 0.6, "moe-lightning": 1.0, "flexgen": 1.0}
"""Of the model's weights, by policy; as in the tests."""
COMPILED = (
    ("qwen3_moe", "coxmoe"),
    ("mixtral", "moe-lightning"),
    ("deepseek_v3", "flexgen"),
    ("gpt_oss", "coxmoe"),
)
"""In bfloat16, by Inductor; the others' partitions run operator by operator."""


def family_cases(device: torch.device) -> list[Case]:
    """Ten families in float32 under three policies, and some in bfloat16, compiled."""
    gpu_check_on_cuda.prepare()
    from tests.models import FAMILIES  # type: ignore[import-not-found]

    cases = [
        Case(f"{family}, bfloat16, compiled, {policy}", partial(compiled, family, policy))
        for family, policy in COMPILED
    ]
    return cases + [
        Case(f"{family}, float32, {policy}", partial(by_operators, family, policy))
        for policy in VRAM_SHARES
        for family in FAMILIES
    ]


def by_operators(family: str, policy: str) -> Figures:
    """The largest error of any output in a prefill and two decoding steps."""
    from tests.coexecution_cases import leave_partitions_to_eager  # type: ignore[import-not-found]
    from tests.numerics import relative_error  # type: ignore[import-not-found]

    with pytest.MonkeyPatch.context() as patch:
        leave_partitions_to_eager(patch)
        _, alone, divided = _run(family, policy, torch.float32)
    errors = [relative_error(*pair) for pair in zip(divided.all(), alone.all(), strict=True)]
    worst = max(errors) if sum(errors) >= 0 else float("nan")
    return {"error": worst, "bound": ERROR_BOUND}


def compiled(family: str, policy: str) -> Figures:
    """The median token's error in bfloat16 against the float32 model, beside eager's."""
    from tests.coexecution_cases import prefill_and_decode
    from tests.numerics import float32_copy, median_token_error

    model, _, divided = _run(family, policy, torch.bfloat16)
    exact = float32_copy(model)
    reference = torch.cat(prefill_and_decode(exact, exact.config).logits, dim=1)
    eager = torch.cat(prefill_and_decode(model, model.config).logits, dim=1)
    eager_error = median_token_error(eager, reference)
    error = median_token_error(torch.cat(divided.logits, dim=1), reference)
    return {"error": error, "bound": GREATER_ERROR * eager_error, "eager": eager_error}


def coexecution_cases(device: torch.device) -> list[Case]:
    """Every function of tests/test_coexecution.py that is not about families, on cuda."""
    tree = ast.parse(TESTS.read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [
        Case(name.removeprefix("test_").replace("_", " "), partial(run_test, name))
        for name in names
        if name.startswith("test_") and "family" not in name and "compiled" not in name
    ]


def run_test(name: str) -> Figures:
    """One function of the file, with all its parameters.

    Raises:
        AssertionError: pytest says that it failed; the message is its first error.
    """
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    # Safe path: the folder "coxcompile" in the repository is not the whole package.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "gpu_check_on_cuda"]
    command += ["-p", "no:cacheprovider", "--tb=short", f"{TESTS}::{name}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if finished.returncode:
        lines = (finished.stdout + finished.stderr).splitlines()
        errors = [line for line in lines if line.startswith(("E  ", "ERROR", "FAILED"))]
        raise AssertionError((errors or lines[-1:] or ["no output"])[0])
    return {}


def _run(family: str, policy: str, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """The model, its outputs on the CPU alone, and those with the accelerator."""
    from tests.coexecution_cases import (
        Variants,
        build_layers,
        emulated_options,
        prefill_and_decode,
        weight_bytes,
    )

    torch._dynamo.reset()
    model: Any = build_layers(family, MOE_LAYERS, dtype=dtype)
    session = Session(record=True)
    vram = int(VRAM_SHARES[policy] * weight_bytes(model))
    choices = {"none": {"accelerator": "none"}, policy: emulated_options(session, vram, policy)}
    variants = Variants(model, choices, dynamic=False)
    alone = prefill_and_decode(variants.model, model.config)
    variants.chosen = policy
    try:
        divided = prefill_and_decode(variants.model, model.config)
    finally:
        session.release()
    if len(session.executions) != len(divided.logits):
        raise AssertionError(
            f"{len(session.executions)} of {len(divided.logits)} calls ran on the accelerator"
        )
    return model, alone, divided
