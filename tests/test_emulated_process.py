"""The emulated accelerator in a process of its own: registration and exit."""

import importlib
import subprocess
import sys

import pytest
import torch

from coxcompile.runtime.emulated.extension import import_extension

pytest.importorskip("coxcompile._emulated", reason="the emulated accelerator is not built")


def run(program: str) -> str:
    """What the program prints; its exit must take no more than a minute."""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.strip()


def test_importing_registers_nothing() -> None:
    assert (
        run(
            "import torch, coxcompile._emulated; from coxcompile.runtime import emulated\n"
            "print(torch.accelerator.current_accelerator())\n"
            "print(torch._C._get_privateuse1_backend_name())"
        )
        == "None\nprivateuseone"
    )


def test_loading_twice() -> None:
    assert (
        run(
            "import torch; from coxcompile.runtime import emulated\n"
            "print(emulated.load(), emulated.load(), torch.accelerator.current_accelerator())"
        )
        == "emulated:0 emulated:0 emulated"
    )


def test_exit_with_work_pending_and_tensors_alive() -> None:
    """Of 100 s of work on each of four streams, waiting for each other, nothing is waited for."""
    assert (
        run(
            """
import torch
from coxcompile.hardware import Link
from coxcompile.runtime import emulated
device = emulated.load()
emulated.configure(host_to_device=Link(bytes_per_second=1))
tensors, streams = [], [torch.Stream(device) for _ in range(4)]
for before, stream in zip([None, *streams], streams):
    with stream:
        if before is not None:
            stream.wait_stream(before)
        emulated.enqueue(lambda: None, "long", 100.0)
        emulated.enqueue(lambda: print("must not run"), "after")
        tensors.append(torch.ones(100).to(device, non_blocking=True))
        tensors.append(torch.empty(4, pin_memory=True))
kept = emulated.as_host(tensors[0])
event = torch.Event(device)
event.record(streams[-1])
print("end")
"""
        )
        == "end"
    )


def test_exit_with_an_error_pending() -> None:
    assert (
        run(
            """
import torch
from coxcompile.runtime import emulated
emulated.load()
emulated.enqueue(lambda: 1 / 0, "bad")
emulated.enqueue(lambda: None, "after")
print("end")
"""
        )
        == "end"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch has its own CUDA guard")
def test_the_fake_cuda_guard_comes_alone() -> None:
    assert (
        run(
            """
import torch
from torch._subclasses import FakeTensorMode
from coxcompile.runtime import emulated
print(emulated.register_fake_cuda_guard(), emulated.register_fake_cuda_guard())
with FakeTensorMode():
    moved = torch.empty(3).to("cuda") + 1
print(moved.device, torch._C._get_privateuse1_backend_name())
"""
        )
        == "True False\ncuda:0 privateuseone"
    )


def test_what_to_do_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    import_extension.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    try:
        with pytest.raises(RuntimeError, match=r"was not built.*setup\.py build_ext --inplace"):
            import_extension()
    finally:
        import_extension.cache_clear()
