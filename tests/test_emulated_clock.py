"""The emulated accelerator's clock, its records and its delays."""

import itertools
import time

import pytest
import torch

from coxcompile.runtime import emulated
from coxcompile.runtime.emulated import Delays, Span
from tests import emulated_cases
from tests.emulated_cases import append, double, fill, held

device_fixture = emulated_cases.device_fixture


def spans_of(seconds: list[float], device: torch.device) -> list[Span]:
    """Kernels that were all enqueued before the first of them could begin."""
    emulated.start_timeline()
    stream = torch.Stream(device)
    with stream, held(stream):
        append([], "filler", 0.1)
        for index, duration in enumerate(seconds):
            append([], str(index), duration)
    stream.synchronize()
    return [span for span in emulated.take_timeline() if span.label not in ("gate", "filler")]


def test_kernels_last_as_said(device: torch.device) -> None:
    started = time.perf_counter()
    append([], "given", 0.02)
    emulated.enqueue(lambda: 0.03, "returned", seconds=100.0)
    torch.accelerator.synchronize()
    assert time.perf_counter() - started >= 0.05


def test_the_ideal_clock_adds_no_sleep(device: torch.device) -> None:
    spans = spans_of([0.001] * 20, device)
    assert all(a.end == b.begin for a, b in itertools.pairwise(spans))
    assert spans[-1].end - spans[0].begin >= 0.02 - 1e-9


def test_real_work_that_takes_longer_counts(device: torch.device) -> None:
    emulated.start_timeline()
    emulated.enqueue(lambda: time.sleep(0.02), "slow", 0.001)
    torch.accelerator.synchronize()
    (span,) = emulated.take_timeline()
    assert span.end - span.begin >= 0.02


def test_work_begins_after_what_it_waits_for(device: torch.device) -> None:
    emulated.start_timeline()
    first, second = torch.Stream(device), torch.Stream(device)
    with first:
        append([], "first", 0.02)
    second.wait_stream(first)
    with second:
        append([], "second", 0.01)
    second.synchronize()
    spans = {span.label: span for span in emulated.take_timeline()}
    assert spans["second"].begin >= spans["first"].end
    assert spans["first"].stream_id == first.stream_id
    assert spans["first"].kind == "kernel"


def test_timeline_and_launches(device: torch.device) -> None:
    append([], "before")
    torch.accelerator.synchronize()
    emulated.start_timeline()
    before = time.perf_counter()
    append([], "kernel", 0.002)
    emulated.host_function(lambda: None, "callback", 0.001)
    with emulated.labelled("cpu work"):
        emulated.run_on_host(lambda: 0.001)
    torch.accelerator.synchronize()
    spans = emulated.take_timeline()
    assert {(span.label, span.kind) for span in spans} == {
        ("kernel", "kernel"),
        ("callback", "host_function"),
        ("cpu work", "host"),
    }
    assert all(before <= span.begin <= span.end for span in spans)
    assert [span.stream_id for span in spans if span.kind == "host"] == [-1]
    assert emulated.statistics().launches == 2
    append([], "after")
    torch.accelerator.synchronize()
    assert emulated.take_timeline() == []


def test_work_on_the_host(device: torch.device) -> None:
    calls: list[str] = []
    started = time.perf_counter()
    emulated.run_on_host(lambda: calls.append("now"), 0.02)
    emulated.run_on_host(lambda: 0.03)
    assert calls == ["now"]
    assert time.perf_counter() - started >= 0.05
    with pytest.raises(ZeroDivisionError):
        emulated.run_on_host(lambda: 1 / 0)
    assert emulated.take_error() is None


def test_a_delayed_label_brings_out_a_race(device: torch.device) -> None:
    first, second = torch.Stream(device), torch.Stream(device)
    values, copy = torch.empty(4, device=device), torch.empty(4, device=device)
    emulated.delay_label("slow", 0.3)
    emulated.start_timeline()
    begin = time.perf_counter()
    with first:
        fill(values, 1.0, label="slow")
    with second:
        double(copy, values)
    second.synchronize()
    assert copy.isnan().all()
    first.synchronize()
    (slow,) = (span for span in emulated.take_timeline() if span.label == "slow")
    assert slow.begin - begin >= 0.3


def test_random_delays_follow_the_seed(device: torch.device) -> None:
    stream = torch.Stream(device)

    def delayed(seed: int) -> list[bool]:
        emulated.configure(delays=Delays(seed=seed, most_seconds=0.01, share=0.5))
        emulated.start_timeline()
        with stream, held(stream):
            append([], "filler", 0.1)
            for index in range(20):
                append([], str(index))
        stream.synchronize()
        spans = [span for span in emulated.take_timeline() if span.label != "gate"]
        # Real work of any length ends where the next begins, unless that is delayed.
        return [b.begin > a.end for a, b in itertools.pairwise(spans)]

    pattern = delayed(1)
    assert set(pattern) == {True, False}
    assert delayed(1) == pattern
    assert delayed(2) != pattern


def test_delays_are_validated() -> None:
    with pytest.raises(ValueError, match="share is 2"):
        Delays(seed=0, most_seconds=0.1, share=2)
    with pytest.raises(ValueError, match="most_seconds is -1"):
        Delays(seed=0, most_seconds=-1, share=1)
    with pytest.raises(ValueError, match="memory_bytes is -5"):
        emulated.configure(memory_bytes=-5)
