"""Weights on two NUMA nodes: run by `make test` where there are two, else by `make test-numa`."""

import ctypes
import logging
import multiprocessing
import os
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import coxcompile.ops  # noqa: F401  (loads the kernels)
from coxcompile.ops import CPU_KERNELS
from tests.models import build
from tests.numerics import relative_error

NODES = torch.ops.coxmoe.memory_nodes() if CPU_KERNELS == "native" else [0]
PAGE = os.sysconf("SC_PAGESIZE")
MOVE_PAGES = 279
"""The number of the system call on x86-64."""

PR_SET_THP_DISABLE = 41
M_MMAP_THRESHOLD = -3

pytestmark = [
    pytest.mark.skipif(len(NODES) != 2, reason=f"the NUMA nodes here are {NODES}"),
    pytest.mark.skipif(
        platform.machine() != "x86_64", reason="system calls have other numbers elsewhere"
    ),
]


@pytest.fixture(autouse=True)
def _on_the_first_node() -> Iterator[None]:
    """What the thread allocates lies on the node of the first processor, in small pages."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    # From here on every weight gets pages of its own, and none that moved in an earlier test.
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16) == 1
    allow_large_pages(False)
    yield
    allow_large_pages(True)
    os.sched_setaffinity(0, before)


def allow_large_pages(allowed: bool) -> None:
    """For what this process allocates from now on."""
    assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, int(not allowed), 0, 0, 0) == 0


def nodes_of(values: Tensor) -> np.ndarray:
    """The node of each page that begins in ``values``, as the system says.

    Reads them first: the system does not say it of pages that it hides to see who reads them.
    """
    values.sum()
    start, end = values.data_ptr(), values.data_ptr() + values.nbytes
    addresses = np.arange(-(-start // PAGE) * PAGE, end, PAGE, dtype=np.uint64)
    status = np.full(len(addresses), -1, dtype=np.int32)
    result = ctypes.CDLL(None, use_errno=True).syscall(
        MOVE_PAGES, 0, len(addresses), ctypes.c_void_p(addresses.ctypes.data), None,
        ctypes.c_void_p(status.ctypes.data), 0,
    )  # fmt: skip
    assert result == 0
    return status


def assert_halves_lie_apart(projection: Tensor) -> None:
    """[rows, depth]: the first half of the rows on the first node, the others on the second.

    But for some pages: those at the ends, and those that Linux moves to whoever reads them here.
    """
    for node, half in zip(NODES, projection.chunk(2), strict=True):
        assert (nodes_of(half) == node).mean() > 0.95


def assert_share(placed: list[int], weight: Tensor) -> None:
    """Each node has its half, but for the pages at the ends."""
    for of_node in placed:
        assert 0.95 * weight.nbytes / 2 < of_node <= weight.nbytes / 2


@pytest.mark.parametrize(("projections", "rows"), [(6, 400), (3, 800), (1, 376)])
def test_pages_move_and_contents_stay(projections: int, rows: int) -> None:
    weight = torch.randn(projections * rows, 2048)
    before, address = weight.clone(), weight.data_ptr()
    assert (nodes_of(weight) == NODES[0]).all()
    assert_share(torch.ops.coxmoe.spread_over_nodes(weight, projections), weight)
    for projection in weight.view(projections, rows, 2048):
        assert_halves_lie_apart(projection)
    assert weight.data_ptr() == address
    assert torch.equal(weight, before)


def test_large_pages_move_as_a_whole_and_are_counted_where_they_lie() -> None:
    allow_large_pages(True)
    weight = torch.randn(6 * 400, 2048)
    before = weight.clone()
    placed = torch.ops.coxmoe.spread_over_nodes(weight, 6)
    parts = weight.view(6, 2, 200, 2048)
    for part, (node, of_node) in enumerate(zip(NODES, placed, strict=True)):
        pages = sum(int((nodes_of(projection[part]) == node).sum()) for projection in parts)
        assert abs(of_node - pages * PAGE) <= 6 * PAGE
    assert torch.equal(weight, before)


def test_pages_of_two_processes_stay_and_are_not_counted() -> None:
    weight = torch.randn(1000, 1024)
    context = multiprocessing.get_context("fork")
    done = context.Event()
    child = context.Process(target=done.wait)
    child.start()
    try:
        first, second = torch.ops.coxmoe.spread_over_nodes(weight, 1)
    finally:
        done.set()
        child.join()
    assert first > 0.95 * weight.nbytes / 2
    assert second < 0.05 * weight.nbytes / 2


def test_experts_give_the_same_bits_wherever_they_lie() -> None:
    hidden_states = torch.randn(50, 256)
    expert_ids = torch.rand(50, 6).topk(2).indices
    gate_up, down = torch.randn(6, 2 * 500, 256) / 16, torch.randn(6, 256, 500) / 22
    arguments = (hidden_states, expert_ids, torch.rand(50, 2), gate_up, down)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    threads = torch.get_num_threads()
    expected = torch.ops.coxmoe.coalesced_experts(*arguments)
    torch.ops.coxmoe.spread_over_nodes(gate_up, 12)
    torch.ops.coxmoe.spread_over_nodes(down, 6)
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            assert torch.equal(torch.ops.coxmoe.coalesced_experts(*arguments), expected)
    finally:
        torch.set_num_threads(threads)


# 1 MB each expert, so that the pages at the ends are few.
SIZES: dict[str, Any] = {"hidden_size": 256, "moe_intermediate_size": 512}


def test_the_option_spreads_a_model(caplog: pytest.LogCaptureFixture) -> None:
    model = build("qwen3_moe", dtype=torch.float32, **SIZES)
    ids = torch.randint(0, model.config.vocab_size, (1, 9))
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        options = {"accelerator": "none", "spread_experts": True}
        compiled = torch.compile(model, backend="coxmoe", options=options)
        with caplog.at_level(logging.INFO, "coxcompile"):
            actual = compiled(input_ids=ids, use_cache=False).logits
    assert relative_error(actual, expected) < 1e-5
    assert "GB of the experts' weights lie on the NUMA nodes that read them" in caplog.text
    # Where the pages are by now is up to Linux, which has seen who reads them.
    assert "only" not in caplog.text
