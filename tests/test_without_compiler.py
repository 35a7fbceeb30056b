"""What a user meets where there is no C++ compiler: at install, at run time, or both."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from coxcompile.runtime.kernels import inductor_obstacle

needs_native = pytest.mark.skipif(
    importlib.util.find_spec("coxcompile._native") is None, reason="the C++ kernels are not built"
)
needs_compiler = pytest.mark.skipif(
    inductor_obstacle() is not None, reason="Inductor cannot compile for the CPU"
)

HIDE_NATIVE = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "coxcompile._native" else find_spec(name)
"""

HIDE_PYTHON_H = """
import torch._inductor.cpp_builder as cpp_builder
cpp_builder._get_python_related_args = lambda: (["/nonexistent"], [])
"""

# Prefill and decoding with a StaticCache: graphs that write into their inputs.
RUN_MIXTRAL = """
import sys
import torch
from transformers import StaticCache
from tests.models import build
from tests.numerics import relative_error

ids = torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(0))
model = build("mixtral", dtype=torch.float32)
for dynamic in map({"None": None, "True": True}.get, sys.argv[1:]):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="coxmoe", fullgraph=True, dynamic=dynamic)
    caches = [StaticCache(config=model.config, max_cache_len=32) for _ in range(2)]
    with torch.no_grad():
        for step in (ids, ids[:, :1], ids[:, 1:2]):
            expected = model(input_ids=step, past_key_values=caches[0]).logits
            with torch.profiler.profile() as profile:
                logits = compiled(input_ids=step, past_key_values=caches[1]).logits
            assert relative_error(logits, expected) < 1e-5
            for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
                assert relative_error(ours.keys, theirs.keys) < 1e-5
                assert relative_error(ours.values, theirs.values) < 1e-5
                assert int(ours.cumulative_length) == int(theirs.cumulative_length)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    # In the last step, which compiles nothing.
    names = [event.name for event in profile.events()]
    assert names.count("coxmoe::coalesced_experts") == len(model.model.layers)
"""


def our_lines(program: str, *arguments: str, tmp_path: Path, **environment: str) -> list[str]:
    """Run a program in a process of its own; what it prints of ours."""
    inherited = {name: value for name, value in os.environ.items() if name != "CXX"}
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**inherited, **cache, **environment},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return [line for line in ended.stderr.splitlines() if "coxcompile" in line]


@pytest.mark.parametrize("cxx", [None, "/nonexistent"])
def test_no_compiler_at_install_and_none_now(cxx: str | None, tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path)} | ({} if cxx is None else {"CXX": cxx})
    lines = our_lines(HIDE_NATIVE + RUN_MIXTRAL, "None", "True", tmp_path=tmp_path, **environment)
    assert lines == [
        f"coxcompile: no C++ compiler was found ({cxx or 'g++'}), so Inductor compiles nothing and "
        "experts run on plain PyTorch calls, slower. Install g++ (Debian: apt-get install g++) and "
        "reinstall coxcompile."
    ]


@needs_native
def test_kernels_built_elsewhere_and_no_compiler_now(tmp_path: Path) -> None:
    (line,) = our_lines(RUN_MIXTRAL, "None", "True", tmp_path=tmp_path, PATH=str(tmp_path))
    assert line.startswith("coxcompile: no C++ compiler was found (g++), so Inductor compiles")
    assert line.endswith("Install g++ (Debian: apt-get install g++).")
    assert "plain PyTorch" not in line


@needs_compiler
def test_no_compiler_at_install_and_one_now(tmp_path: Path) -> None:
    (line,) = our_lines(HIDE_NATIVE + RUN_MIXTRAL, "None", tmp_path=tmp_path)
    assert "experts run on plain PyTorch calls" in line
    assert "Reinstall coxcompile" in line
    assert list((tmp_path / "inductor").rglob("*.so")), "Inductor compiled nothing"


@needs_native
@needs_compiler
def test_no_python_header(tmp_path: Path) -> None:
    (line,) = our_lines(HIDE_PYTHON_H + RUN_MIXTRAL, "None", tmp_path=tmp_path)
    assert line.startswith("coxcompile: no Python.h was found, so Inductor compiles nothing")
    assert line.endswith("apt-get install python3-dev).")


@needs_compiler
def test_an_error_of_inductor_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise RuntimeError("the compiler failed")

    # By its module: coxcompile.passes.lower is the function.
    module = importlib.import_module("coxcompile.passes.lower")
    monkeypatch.setattr(module, "compile_fx", fail)
    torch._dynamo.reset()
    compiled = torch.compile(torch.sin, backend="coxmoe")
    with torch.no_grad(), pytest.raises(Exception, match="the compiler failed"):
        compiled(torch.randn(3))
