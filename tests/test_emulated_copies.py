"""The emulated accelerator's copies: order, what they count, and the links they share."""

import time

import pytest
import torch

from coxcompile.hardware import Link
from coxcompile.runtime import emulated
from tests import emulated_cases
from tests.emulated_cases import fill, held

device_fixture = emulated_cases.device_fixture
SLOW = Link(bytes_per_second=1e6)


def zeros_taking(milliseconds: int, **options: object) -> torch.Tensor:
    """Zeros that take so long over SLOW."""
    return torch.zeros(1000 * milliseconds, dtype=torch.uint8, **options)


def test_round_trips(device: torch.device) -> None:
    for tensor in (
        torch.randn(3, 4),
        torch.randn(3, 4).t(),
        torch.randn(8, 8)[::2, 1::3],
        torch.randn(0, 3),
        torch.tensor(3),
        torch.randn(3).bfloat16(),
    ):
        assert tensor.to(device).cpu().equal(tensor)
    transposed = torch.empty(4, 3, device=device).t()
    values = torch.randn(3, 4)
    transposed.copy_(values)
    assert transposed.cpu().equal(values)


def test_copies_convert_and_broadcast(device: torch.device) -> None:
    target = torch.empty(2, 3, device=device)
    target.copy_(torch.arange(3))
    assert target.cpu().equal(torch.arange(3.0).expand(2, 3))
    elsewhere = torch.empty_like(target)
    elsewhere.copy_(target.half())
    assert elsewhere.cpu().equal(target.cpu())


def test_non_blocking_copies_follow_the_stream(device: torch.device) -> None:
    stream = torch.Stream(device)
    source = torch.ones(4, pin_memory=True)
    values = torch.empty(4, device=device)
    result = torch.empty(4, pin_memory=True)
    with stream, held(stream):
        values.copy_(source, non_blocking=True)
        result.copy_(values, non_blocking=True)
        assert result.isnan().all()
    stream.synchronize()
    assert result.eq(1).all()


def test_unpinned_memory_is_copied_asynchronously_as_well(device: torch.device) -> None:
    stream = torch.Stream(device)
    with stream, held(stream):
        values = torch.ones(4).to(device, non_blocking=True)
        assert bytes(emulated.as_host(values).view(torch.uint8).tolist()) == b"\xff" * 16
    stream.synchronize()
    assert values.cpu().eq(1).all()


def test_a_copy_keeps_its_source_on_the_host(device: torch.device) -> None:
    stream = torch.Stream(device)
    with stream:
        result = torch.empty(4, device=device)
        with held(stream):
            result.copy_(torch.ones(4), non_blocking=True)
    stream.synchronize()
    assert result.cpu().eq(1).all()


def test_a_copy_does_not_keep_its_source_on_the_device(device: torch.device) -> None:
    """As on a GPU: freed on the stream that copies it is safe, on another it needs a wait."""
    allocating, copying = torch.Stream(device), torch.Stream(device)
    result = torch.empty(4, pin_memory=True)
    with allocating:
        values = torch.ones(4, device=device)
    allocating.synchronize()
    with copying, held(copying):
        result.copy_(values, non_blocking=True)
        del values
        assert emulated.statistics().allocated_bytes == 0
        allocating.synchronize()
    copying.synchronize()
    assert result.isnan().all()


def test_blocking_copies_wait(device: torch.device) -> None:
    values = torch.empty(4, device=device)
    fill(values, 1.0, seconds=0.01)
    assert values.cpu().eq(1).all()
    assert values[1].item() == 1


def test_copies_on_the_device_do_not_wait(device: torch.device) -> None:
    stream = torch.Stream(device)
    values, result = torch.ones(4, device=device), torch.empty(4, device=device)
    with stream:
        with held(stream):
            result.copy_(values)
            assert not stream.query()
        assert result.cpu().eq(1).all()


def test_bytes_are_counted_by_direction(device: torch.device) -> None:
    values = torch.zeros(10, device=device)
    emulated.reset_statistics()
    values.copy_(torch.ones(10))
    assert values[:3].cpu().sum() == 3
    values[0].item()
    other = torch.empty_like(values)
    other.copy_(values)
    other.add_(values)
    counted = emulated.statistics()
    assert counted.bytes_host_to_device == 40
    assert counted.bytes_device_to_host == 12 + 4


def test_copies_take_the_links_time(device: torch.device) -> None:
    emulated.configure(
        host_to_device=Link(bytes_per_second=1e6, latency_seconds=0.005), device_to_host=SLOW
    )
    source = zeros_taking(20, pin_memory=True)
    started = time.perf_counter()
    values = source.to(device)
    uploaded = time.perf_counter()
    values.cpu()
    assert uploaded - started >= 0.025
    assert time.perf_counter() - uploaded >= 0.02


def test_a_throttled_copy_arrives_at_its_end(device: torch.device) -> None:
    emulated.configure(host_to_device=Link(bytes_per_second=2e4))
    stream = torch.Stream(device)
    values = torch.empty(5000, dtype=torch.uint8, device=device)
    alias = emulated.as_host(values)
    with stream:
        values.copy_(torch.zeros(5000, dtype=torch.uint8), non_blocking=True)
    assert alias.eq(255).all()
    stream.synchronize()
    assert alias.eq(0).all()


def test_streams_share_a_link(device: torch.device) -> None:
    emulated.configure(host_to_device=SLOW)
    emulated.start_timeline()
    for index in range(3):
        with torch.Stream(device), emulated.labelled(str(index)):
            zeros_taking(10).to(device, non_blocking=True)
    torch.accelerator.synchronize()
    spans = emulated.take_timeline()
    assert max(span.end for span in spans) - min(span.begin for span in spans) >= 0.03 - 1e-9


def test_directions_do_not_share_a_link(device: torch.device) -> None:
    emulated.configure(host_to_device=SLOW)
    values = torch.empty(20_000, dtype=torch.uint8, device=device)
    upload, download = torch.Stream(device), torch.Stream(device)
    with upload:
        zeros_taking(500).to(device, non_blocking=True)
    with download:
        values.cpu()
    assert not upload.query()


def test_urgent_copies_overtake_long_ones(device: torch.device) -> None:
    emulated.configure(host_to_device=SLOW)
    emulated.start_timeline()
    weights, activations = torch.Stream(device), torch.Stream(device, priority=-1)
    with weights:
        for label, milliseconds in (("long", 200), ("waiting", 20)):
            with emulated.labelled(label):
                zeros_taking(milliseconds).to(device, non_blocking=True)
    time.sleep(0.01)
    with activations, emulated.labelled("urgent"):
        zeros_taking(5).to(device, non_blocking=True)
    torch.accelerator.synchronize()
    assert [span.label for span in emulated.take_timeline()] == ["urgent", "long", "waiting"]


def test_equally_urgent_copies_take_turns_by_arrival(device: torch.device) -> None:
    emulated.configure(host_to_device=SLOW)
    emulated.start_timeline()
    for label, milliseconds in (("long", 60), ("short", 5)):
        with torch.Stream(device), emulated.labelled(label):
            zeros_taking(milliseconds).to(device, non_blocking=True)
        time.sleep(0.03)
    torch.accelerator.synchronize()
    assert [span.label for span in emulated.take_timeline()] == ["long", "short"]


@pytest.mark.parametrize("upload", [True, False])
def test_rows(device: torch.device, upload: bool) -> None:
    target, origin = (device, "cpu") if upload else ("cpu", device)
    sources = [torch.arange(12.0).view(4, 3).to(origin), torch.arange(8).view(4, 2).to(origin)]
    destinations = [torch.full_like(source, -1, device=target) for source in sources]
    count = torch.tensor([2]).to(origin)
    count_copy = torch.empty(1, dtype=torch.int64, device=target)
    emulated.reset_statistics()
    emulated.start_timeline()
    emulated.copy_rows(destinations, sources, count, "rows", whole=[(count_copy, count)])
    torch.accelerator.synchronize()
    (span,) = emulated.take_timeline()
    assert (span.label, span.kind) == ("rows", "host_to_device" if upload else "device_to_host")
    counted = emulated.statistics()
    moved = 2 * 3 * 4 + 2 * 2 * 8 + 8
    assert (counted.bytes_host_to_device, counted.bytes_device_to_host) == (
        (moved, 0) if upload else (0, moved)
    )
    assert count_copy.item() == 2
    for destination, source in zip(destinations, sources, strict=True):
        assert destination[:2].cpu().equal(source[:2].cpu())
        assert destination[2:].cpu().eq(-1).all()


def test_the_count_of_rows_is_read_on_the_stream(device: torch.device) -> None:
    stream = torch.Stream(device)
    source, count = torch.ones(4, 1, device=device), torch.zeros(1, dtype=torch.int64).to(device)
    result = torch.zeros(4, 1)
    with stream, held(stream):
        fill(count, 3)
        emulated.copy_rows([result], [source], count, "rows")
    stream.synchronize()
    assert result.sum() == 3


def test_rows_that_are_none_take_no_time_of_the_link(device: torch.device) -> None:
    emulated.configure(device_to_host=Link(bytes_per_second=1.0, latency_seconds=1000.0))
    result = torch.zeros(4, 1)
    source, count = torch.empty(4, 1, device=device), torch.zeros(1, dtype=torch.int64).to(device)
    emulated.copy_rows([result], [source], count, "rows")
    torch.accelerator.synchronize()
    assert result.sum() == 0


def test_arguments_of_rows_are_checked(device: torch.device) -> None:
    host, emulated_rows = torch.ones(4, 1), torch.ones(4, 1, device=device)
    count = torch.tensor([2])
    with pytest.raises(ValueError, match="1 destinations, but must be 2"):
        emulated.copy_rows([emulated_rows], [host, host], count, "rows")
    with pytest.raises(ValueError, match="one pair goes from emulated:0 to cpu"):
        emulated.copy_rows([host], [emulated_rows], count, "rows")
    with pytest.raises(ValueError, match=r"must be int64 \[1\]"):
        emulated.copy_rows([emulated_rows], [host], torch.tensor([1, 2]), "rows")
    with pytest.raises(ValueError, match="must be the same"):
        emulated.copy_rows([emulated_rows[:2]], [host], count, "rows")
    emulated.copy_rows([emulated_rows], [host], torch.tensor([5]), "too many")
    with pytest.raises(RuntimeError, match=r"'too many' failed.*count is 5, but must be 0 to 4"):
        torch.accelerator.synchronize()
