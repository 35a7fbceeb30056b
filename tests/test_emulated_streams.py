"""The emulated accelerator's streams and events."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests import emulated_cases
from tests.emulated_cases import append, double, fill, held

device_fixture = emulated_cases.device_fixture


def test_a_stream_runs_in_order(device: torch.device) -> None:
    results: list[str] = []
    stream = torch.Stream(device)
    with stream:
        for index in range(50):
            append(results, str(index))
    stream.synchronize()
    assert results == [str(index) for index in range(50)]


def test_enqueueing_returns_before_the_work(device: torch.device) -> None:
    stream, results = torch.Stream(device), []
    with held(stream):
        with stream:
            append(results, "late")
        assert not stream.query()
        assert results == []
    stream.synchronize()
    assert stream.query()
    assert results == ["late"]


def test_a_missing_wait_gives_nan(device: torch.device) -> None:
    first, second = torch.Stream(device), torch.Stream(device)
    values, wrong, right = (torch.empty(4, device=device) for _ in range(3))
    with held(first):
        with first:
            fill(values, 1.0)
            done = torch.Event(device)
            done.record()
        with second:
            double(wrong, values)
            second.synchronize()
            second.wait_event(done)
            double(right, values)
        assert not done.query()
    second.synchronize()
    assert done.query()
    assert wrong.isnan().all()
    assert right.cpu().eq(2.0).all()


def test_waiting_for_a_stream(device: torch.device) -> None:
    first, second = torch.Stream(device), torch.Stream(device)
    results: list[str] = []
    with held(first):
        with first:
            append(results, "first")
        second.wait_stream(first)
        with second:
            append(results, "second")
    second.synchronize()
    assert results == ["first", "second"]


def test_an_event_stands_for_its_last_recording(device: torch.device) -> None:
    stream, event = torch.Stream(device), torch.Event(device)
    assert event.query()
    event.record(stream)
    event.synchronize()
    with held(stream):
        event.record(stream)
        assert not event.query()
    event.synchronize()
    assert event.query()


def test_a_wait_is_for_the_recording_before_it(device: torch.device) -> None:
    first, second = torch.Stream(device), torch.Stream(device)
    event, results = torch.Event(device), []
    event.record(first)
    second.wait_event(event)
    with held(first):
        event.record(first)
        with second:
            append(results, "not held")
        second.synchronize()
        assert results == ["not held"]
    first.synchronize()


def test_elapsed_time_is_that_of_the_work(device: torch.device) -> None:
    begin, end = (torch.Event(device, enable_timing=True) for _ in range(2))
    begin.record()
    append([], "work", 0.02)
    end.record()
    end.synchronize()
    assert begin.elapsed_time(end) >= 20
    unrecorded = torch.Event(device, enable_timing=True)
    with pytest.raises(Exception, match="recorded"):
        begin.elapsed_time(unrecorded)


def test_many_streams(device: torch.device) -> None:
    results: list[str] = []
    streams = [torch.Stream(device) for _ in range(40)]
    assert len({stream.stream_id for stream in streams}) == 40
    for stream in streams:
        with stream:
            append(results, str(stream.stream_id))
    torch.accelerator.synchronize()
    assert sorted(results) == sorted(str(stream.stream_id) for stream in streams)


def test_the_accelerator_api(device: torch.device) -> None:
    assert torch.accelerator.current_accelerator() == torch.device("emulated")
    assert torch.accelerator.device_count() == 1
    stream = torch.Stream(device)
    with stream:
        assert torch.accelerator.current_stream() == stream
    assert torch.accelerator.current_stream() != stream
    with pytest.raises(RuntimeError, match="one emulated device"):
        torch.empty(1, device="emulated:1")


@pytest.mark.parametrize("wait", [torch.Tensor.item, bool, torch.Tensor.cpu, float])
def test_waiting_lets_enqueued_functions_have_the_gil(
    device: torch.device, wait: Callable[..., Any]
) -> None:
    value = torch.empty(1, device=device)
    fill(value, 1.0, seconds=0.01)
    assert wait(value) == 1
