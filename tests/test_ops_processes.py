"""The op in several threads at once, under changing thread counts, and in forked children."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_ops import TOLERANCE, Case, coalesced_experts

from tests import forked_calls

ROOT = Path(__file__).parents[1]


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unforced_switches() -> Iterator[None]:
    """No thread takes the interpreter lock from another that does not give it up."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_python_threads_at_once_get_the_bits_of_each_alone(dtype: torch.dtype) -> None:
    calls = [
        Case(dtype=dtype, tokens=tokens, hidden=hidden, transposed=transposed).arguments()
        for tokens, hidden, transposed in (
            (3, 300, False),
            (64, 70, True),
            (200, 64, False),
            (17, 130, False),
        )
    ]
    alone = [coalesced_experts(**arguments) for arguments in calls]
    start = threading.Barrier(len(calls))

    def run(index: int) -> None:
        start.wait()
        for _ in range(20):
            assert torch.equal(coalesced_experts(**calls[index]), alone[index])

    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(run, range(len(calls))))


@pytest.mark.usefixtures("unforced_switches")
def test_other_python_threads_run_during_a_call() -> None:
    arguments = Case(tokens=600, hidden=1024, intermediate=1024, experts=4).arguments()
    count = 0
    ended = threading.Event()

    def go_on() -> None:
        nonlocal count
        while not ended.is_set():
            count += 1
            time.sleep(0.001)  # gives the lock up, for long enough that the caller gets it

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        before = count
        coalesced_experts(**arguments)
        after = count
    finally:
        ended.set()
        thread.join()
    assert after > before


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("tokens", [1, 64, 600])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.usefixtures("restored_threads")
def test_more_threads_than_processors_and_fewer_again(
    dtype: torch.dtype, tokens: int, transposed: bool
) -> None:
    arguments = Case(
        tokens=tokens, hidden=300, dtype=dtype, transposed=transposed, routing="skewed"
    ).arguments()
    torch.set_num_threads(1)
    expected = coalesced_experts(**arguments)
    for threads in (7, 3, 2, 7, 1):
        torch.set_num_threads(threads)
        assert torch.equal(coalesced_experts(**arguments), expected), threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("which", forked_calls.CASES)
def test_forked_children(which: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.forked_calls", which],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3 * forked_calls.SECONDS,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout == "done\n"
