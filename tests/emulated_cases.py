"""What tests of the emulated accelerator share. Skips them where its extension is not built."""

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from coxcompile.runtime import emulated

pytest.importorskip("coxcompile._emulated", reason="the emulated accelerator is not built")


@pytest.fixture(name="device", autouse=True)
def device_fixture() -> Iterator[torch.device]:
    """The device, with nothing configured, enqueued or counted."""
    device = emulated.load()
    collect_leftovers()
    emulated.configure()
    emulated.reset_statistics()
    yield device
    emulated.take_error()
    emulated.configure()
    torch.accelerator.set_stream(torch.Stream(device))


def collect_leftovers() -> None:
    """Free what earlier tests of the process left on the device, in cycles of references."""
    if emulated.statistics().allocated_bytes:
        gc.collect()


@contextmanager
def held(stream: torch.Stream) -> Iterator[None]:
    """Let nothing that is enqueued on the stream begin before the end of the context."""
    gate = threading.Event()
    with stream:
        emulated.enqueue(lambda: _wait(gate), "gate")
    try:
        yield
    finally:
        gate.set()


def fill(tensor: torch.Tensor, value: float, seconds: float = 0.0, label: str = "fill") -> None:
    """Enqueue a kernel that fills a tensor."""
    alias = emulated.as_host(tensor)

    def run() -> None:
        alias.fill_(value)

    emulated.enqueue(run, label, seconds)


def double(destination: torch.Tensor, source: torch.Tensor) -> None:
    """Enqueue destination = 2 source."""
    to, values = emulated.as_host(destination), emulated.as_host(source)

    def run() -> None:
        to.copy_(2 * values)

    emulated.enqueue(run, "double")


def append(results: list[str], label: str, seconds: float = 0.0) -> None:
    """Enqueue a kernel that appends its label."""
    emulated.enqueue(lambda: results.append(label), label, seconds)


def bytes_at(address: int, size: int) -> bytes:
    """Memory as it is now, freed or not."""
    return ctypes.string_at(address, size)


def _wait(gate: threading.Event) -> None:
    assert gate.wait(timeout=60)
