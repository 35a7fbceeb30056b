"""Errors of what runs on the emulated accelerator: kept, raised, taken."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from coxcompile.runtime import emulated
from tests import emulated_cases
from tests.emulated_cases import append, fill, held

device_fixture = emulated_cases.device_fixture


def fail(label: str = "bad") -> None:
    """Enqueue a kernel that raises."""

    def run() -> None:
        raise KeyError(f"from {label}")

    emulated.enqueue(run, label)


@pytest.mark.parametrize(
    "synchronize",
    [
        lambda values, event: torch.accelerator.synchronize(),
        lambda values, event: torch.accelerator.current_stream().synchronize(),
        lambda values, event: event.synchronize(),
        lambda values, event: values.cpu(),
        lambda values, event: values.copy_(torch.ones(1)),
        lambda values, event: values.item(),
        lambda values, event: values + 1,
    ],
)
def test_every_synchronization_raises_until_the_error_is_taken(
    device: torch.device, synchronize: Callable[..., Any]
) -> None:
    values, event = torch.zeros(1, device=device), torch.Event(device)
    fail()
    event.record()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'bad' failed on the emulated device.*from bad"):
            synchronize(values, event)
    taken = emulated.take_error()
    assert taken is not None
    label, error = taken
    assert label == "bad"
    assert isinstance(error, KeyError)
    assert error.__traceback__ is not None
    synchronize(values, event)


def test_later_work_is_skipped_on_all_streams(device: torch.device) -> None:
    results: list[str] = []
    first, second = torch.Stream(device), torch.Stream(device)
    event, values = torch.Event(device), torch.empty(4, device=device)
    with first:
        fail()
        append(results, "same stream")
        event.record()
    second.wait_event(event)
    with second:
        append(results, "other stream")
        values.copy_(torch.ones(4), non_blocking=True)
        fail("second")
    taken = emulated.take_error()
    assert taken is not None
    assert taken[0] == "bad"
    assert results == []
    assert event.query()
    assert values.isnan().all()
    assert emulated.statistics().launches == 0


def test_the_device_works_again(device: torch.device) -> None:
    fail()
    assert emulated.take_error() is not None
    assert emulated.take_error() is None
    values = torch.empty(4, device=device)
    fill(values, 3.0)
    assert values.cpu().eq(3).all()


def test_a_copy_may_fail(device: torch.device) -> None:
    values = torch.empty(4, device=device)
    with emulated.labelled("wrong shape"), pytest.raises(RuntimeError, match="'wrong shape'"):
        values.copy_(torch.ones(3))
    taken = emulated.take_error()
    assert taken is not None
    assert isinstance(taken[1], RuntimeError)


def test_a_function_must_return_seconds_or_none(device: torch.device) -> None:
    emulated.enqueue(lambda: "text", "kernel")  # type: ignore[arg-type,return-value]
    taken = emulated.take_error()
    assert taken is not None
    assert isinstance(taken[1], TypeError)
    assert "must return None" in str(taken[1])


def test_a_function_must_not_synchronize(device: torch.device) -> None:
    values = torch.ones(1, device=device)
    for function in (torch.accelerator.synchronize, values.item, values.cpu):
        emulated.enqueue(lambda function=function: function() and None, "waits")
        taken = emulated.take_error()
        assert taken is not None
        assert "must not synchronise" in str(taken[1])


def test_errors_of_the_cpu_in_place_of_a_kernel_are_raised_at_once(device: torch.device) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        torch.ones(2, 3, device=device) @ torch.ones(2, 3, device=device)
    assert emulated.take_error() is None


def test_functions_are_let_go_of(device: torch.device) -> None:
    class Called:
        def __call__(self) -> None:
            return None

    stream = torch.Stream(device)
    ran, skipped = Called(), Called()
    references = [weakref.ref(ran), weakref.ref(skipped)]
    with stream, held(stream):
        emulated.enqueue(ran, "ran")
        fail()
        emulated.enqueue(skipped, "skipped")
        del ran, skipped
    emulated.take_error()
    gc.collect()
    assert [reference() for reference in references] == [None, None]
