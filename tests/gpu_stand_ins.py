"""Stand-ins for what the GPU's benchmarks ask of torch.cuda: calls are timed as they are made."""

import contextlib
import time
from typing import Any

import pytest
import torch


class Event:
    """Recorded when ``record`` is called, as nothing is asynchronous."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "Event") -> float:
        return (end.seconds - self.seconds) * 1e3


class Stream:
    def __init__(self, device: torch.device) -> None:
        self.waited: list[Event] = []

    def wait_event(self, event: Event) -> None:
        self.waited.append(event)


@contextlib.contextmanager
def current(stream: Stream) -> Any:
    assert stream.waited, "a stream has to wait for the common begin"
    yield


def stand_in_for_cuda(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone."""
    patch.setattr(torch.cuda, "Event", Event)
    patch.setattr(torch.cuda, "Stream", Stream)
    patch.setattr(torch.cuda, "stream", current)
    patch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
