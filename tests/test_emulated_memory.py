"""The emulated accelerator's memory: poison, stream-ordered freeing, the limit, counts."""

import pytest
import torch

from coxcompile.runtime import emulated
from tests import emulated_cases
from tests.emulated_cases import bytes_at, fill, held

device_fixture = emulated_cases.device_fixture
POISON = b"\xff" * 64


def test_new_memory_is_poisoned(device: torch.device) -> None:
    assert torch.empty(5, device=device).isnan().all()
    assert torch.empty(5, device=device, dtype=torch.bfloat16).isnan().all()
    assert torch.empty(5, device=device, dtype=torch.int64).eq(-1).all()
    assert torch.empty_strided((2, 3), (1, 2), device=device).isnan().all()


def test_freeing_poisons_in_the_order_of_the_stream(device: torch.device) -> None:
    stream = torch.Stream(device)
    with stream:
        tensor = torch.zeros(16, device=device)
    address = tensor.data_ptr()
    with held(stream):
        del tensor
        assert emulated.statistics().allocated_bytes == 0
        assert bytes_at(address, 64) == bytes(64)
    stream.synchronize()
    assert bytes_at(address, 64) == POISON


def test_freeing_waits_for_recorded_streams(device: torch.device) -> None:
    other = torch.Stream(device)
    tensor = torch.zeros(16, device=device)
    address = tensor.data_ptr()
    with held(other):
        tensor.record_stream(other)
        del tensor
        torch.accelerator.current_stream().synchronize()
        assert bytes_at(address, 64) == bytes(64)
    other.synchronize()
    torch.accelerator.current_stream().synchronize()
    assert bytes_at(address, 64) == POISON


def test_a_use_that_is_not_recorded_reads_poison(device: torch.device) -> None:
    other = torch.Stream(device)
    read: list[bytes] = []
    tensor = torch.zeros(16, device=device)
    address = tensor.data_ptr()
    with held(other):
        with other:
            emulated.enqueue(lambda: read.append(bytes_at(address, 64)), "read")
        del tensor
        torch.accelerator.current_stream().synchronize()
    other.synchronize()
    assert read == [POISON]


def test_a_block_serves_its_own_stream_again_after_its_poison(device: torch.device) -> None:
    stream = torch.Stream(device)
    with stream:
        tensor = torch.zeros(16, device=device)
        address = tensor.data_ptr()
        with held(stream):
            del tensor
            while_held = torch.empty(16, device=device)
        assert while_held.data_ptr() != address
        stream.synchronize()
    elsewhere = torch.empty(16, device=device)
    assert elsewhere.data_ptr() != address
    with stream:
        again = torch.empty(16, device=device)
    assert again.data_ptr() == address
    assert again.isnan().all()


def test_the_limit_is_hard(device: torch.device) -> None:
    emulated.configure(memory_bytes=1000)
    tensor = torch.empty(600, dtype=torch.uint8, device=device)
    with pytest.raises(torch.OutOfMemoryError, match=r"500 bytes are wanted.*400 of .* 1000 bytes"):
        torch.empty(500, dtype=torch.uint8, device=device)
    rest = torch.empty(400, dtype=torch.uint8, device=device)
    del tensor, rest
    assert torch.empty(1000, dtype=torch.uint8, device=device).numel() == 1000


def test_freed_bytes_count_no_more_though_work_is_pending(device: torch.device) -> None:
    emulated.configure(memory_bytes=100)
    stream = torch.Stream(device)
    with stream, held(stream):
        tensor = torch.empty(25, device=device)
        del tensor
        torch.empty(25, device=device)
    stream.synchronize()


def test_counts(device: torch.device) -> None:
    first = torch.empty(100, device=device)
    second = torch.empty(50, device=device)
    del second
    assert emulated.statistics().allocated_bytes == 400
    assert emulated.statistics().peak_bytes == 600
    emulated.reset_statistics()
    assert emulated.statistics().peak_bytes == 400
    assert torch.accelerator.memory_allocated() == 400
    del first
    assert emulated.statistics().allocated_bytes == 0


def test_views_and_host_aliases_keep_memory(device: torch.device) -> None:
    view = torch.zeros(10, device=device)[4:]
    alias = emulated.as_host(view)
    del view
    emulated.empty_cache()
    assert emulated.statistics().allocated_bytes == 40
    assert alias.eq(0).all()
    del alias
    assert emulated.statistics().allocated_bytes == 0


def test_host_aliases_share_bytes_sizes_and_strides(device: torch.device) -> None:
    tensor = torch.zeros(4, 6, device=device)
    view = tensor.t()[1:3]
    alias = emulated.as_host(view)
    assert (alias.size(), alias.stride(), alias.storage_offset()) == (
        view.size(),
        view.stride(),
        view.storage_offset(),
    )
    alias.fill_(2)
    assert tensor.cpu().sum() == 2 * 8


def test_device_synchronization_with_freed_memory(device: torch.device) -> None:
    streams = [torch.Stream(device) for _ in range(3)]
    for _ in range(20):
        for stream in streams:
            with stream:
                fill(torch.empty(1000, device=device), 1.0)
        torch.accelerator.synchronize()
    assert emulated.statistics().allocated_bytes == 0


def test_resizing(device: torch.device) -> None:
    tensor = torch.arange(4.0).to(device)
    tensor.resize_(6)
    assert tensor[:4].cpu().equal(torch.arange(4.0))
    tensor.untyped_storage().resize_(8)
    assert tensor.untyped_storage().nbytes() == 8


def test_pinned_memory(device: torch.device) -> None:
    pinned = torch.empty(8, pin_memory=True)
    assert pinned.is_pinned()
    assert pinned[3:].is_pinned()
    assert pinned.isnan().all()
    assert torch.zeros(8).pin_memory().is_pinned()
    assert not torch.zeros(8).is_pinned()
    assert torch.empty_strided((2, 2), (1, 2), pin_memory=True).is_pinned()
