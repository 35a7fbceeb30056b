"""Copies over the link in both directions, and beside products: what runs at the same time."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial

import torch
from gpu_cases import Case, Figures

COPIED_BYTES = 2**28
GEMM_SIZE = 8192
PRODUCTS = 24
ROUNDS = 7

Start = Callable[[], object]


def transfer_cases(device: torch.device) -> list[Case]:
    """One case with a row for each combination."""
    return [Case("copies of 256 MiB", partial(together, device))]


def together(device: torch.device) -> Mapping[str, Figures]:
    """Each alone, then in pairs and all three at once: their own seconds, and all of it.

    Rates are over each one's own stream, from the common start; medians of interleaved rounds.
    """
    work = _work(device)
    combinations = (
        *((name,) for name in work),
        ("to the device", "from it"),
        ("to the device", "products"),
        ("to the device", "from it", "products"),
    )
    readings: dict[str, list[dict[str, float]]] = {" + ".join(c): [] for c in combinations}
    for number in range(ROUNDS + 1):
        for chosen in combinations:
            seconds = _seconds({name: work[name] for name in chosen}, device)
            if number:
                readings[" + ".join(chosen)].append(seconds)
    return {
        names: {
            unit: _rate(name, statistics.median(one[name] for one in of_rounds))
            for name, unit in (
                ("to the device", "GB/s to it"),
                ("from it", "GB/s from it"),
                ("products", "TFLOP/s"),
            )
            if name in of_rounds[0]
        }
        for names, of_rounds in readings.items()
    }


def _rate(name: str, seconds: float) -> float:
    if name == "products":
        return PRODUCTS * 2 * GEMM_SIZE**3 / seconds / 1e12
    return COPIED_BYTES / seconds / 1e9


def _work(device: torch.device) -> dict[str, Start]:
    sent, received = (
        torch.randint(0, 256, (COPIED_BYTES,), dtype=torch.uint8).pin_memory() for _ in range(2)
    )
    there, here = (
        torch.randint(0, 256, (COPIED_BYTES,), dtype=torch.uint8, device=device) for _ in range(2)
    )
    left, right = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=device).bfloat16() for _ in range(2))
    product = torch.empty_like(left)

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=product)

    return {
        "to the device": lambda: there.copy_(sent, non_blocking=True),
        "from it": lambda: received.copy_(here, non_blocking=True),
        "products": multiply,
    }


def _seconds(work: Mapping[str, Start], device: torch.device) -> dict[str, float]:
    """Of each on a stream of its own, from when all may start."""
    new_event: Callable[..., torch.cuda.Event] = torch.cuda.Event
    new_stream: Callable[..., torch.cuda.Stream] = torch.cuda.Stream
    torch.cuda.synchronize(device)
    begin = new_event(enable_timing=True)
    begin.record()
    ends = {}
    for name, start in work.items():
        stream = new_stream(device)
        stream.wait_event(begin)
        with torch.cuda.stream(stream):
            start()
            ends[name] = new_event(enable_timing=True)
            ends[name].record()
    torch.cuda.synchronize(device)
    return {name: begin.elapsed_time(end) / 1e3 for name, end in ends.items()}
