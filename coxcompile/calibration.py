"""``coxmoe calibrate``: this machine's speeds, measured with the kernels that will run."""

import contextlib
import datetime
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from coxcompile.expert_thresholds import expert_loops, restored_thresholds, set_thresholds
from coxcompile.hardware import (
    Dtype,
    EfficiencyCurve,
    ExpertThresholds,
    HardwareSpec,
    Link,
    Processor,
)
from coxcompile.machine import Machine, this_machine
from coxcompile.measurement.cpu import CpuProbe
from coxcompile.measurement.expert_loops import STEPS as THRESHOLD_STEPS
from coxcompile.measurement.expert_loops import measure_thresholds
from coxcompile.measurement.gpu import GpuProbe
from coxcompile.measurement.probe import Probe, Sample
from coxcompile.measurement.progress import progress_bar
from coxcompile.measurement.scheduling import scheduled_first

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ROUNDS = 5
QUICK_ROWS = (1, 4, 16, 64, 256)
QUICK_ROUNDS = 2


def calibrate(
    progress: bool = True, quick: bool = False, dtype: Dtype = "bfloat16"
) -> HardwareSpec:
    """Measure this machine's CPU, and its GPU and link if it has one.

    Takes about a minute, needs 1 GB of memory, and wants the machine to itself: other work on it
    makes everything look slow. Not measured: disks. In bfloat16, unless ``quick``, the thresholds
    between the expert kernel's loops come first, and are in force while speeds are measured.

    Args:
        progress: show a progress bar on stderr.
        quick: fewer numbers of tokens and repeats: some seconds.
        dtype: of the products; the spec's speeds are for models of this dtype.

    Raises:
        ValueError: the dtype is none that can be calibrated.
        DetectionError: the machine does not say what it is.
    """
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype is {dtype!r}, but must be one of {', '.join(get_args(Dtype))}")
    machine = this_machine()
    torch_dtype: torch.dtype = getattr(torch, dtype)
    cpu = CpuProbe(torch_dtype)
    gpu = GpuProbe(torch_dtype, torch.device("cuda")) if machine.gpu else None
    rows, rounds = (QUICK_ROWS, QUICK_ROUNDS) if quick else (ROWS, ROUNDS)
    probes: list[Probe] = [cpu] if gpu is None else [cpu, gpu]
    steps = len(probes) * len(rows) * (rounds + 1)
    has_thresholds = dtype == "bfloat16" and not quick and bool(expert_loops())
    steps += THRESHOLD_STEPS if has_thresholds else 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(scheduled_first())
        advance = stack.enter_context(progress_bar("calibrating", steps, shown=progress))
        thresholds = None
        if has_thresholds:
            stack.enter_context(restored_thresholds())
            thresholds = measure_thresholds(advance=advance)
            set_thresholds(thresholds)
        readings = [take_readings(probe, rows, rounds, advance) for probe in probes]
        links = gpu.links() if gpu else None
    return hardware_of(machine, dtype, readings, links, _source(quick), thresholds)


@dataclass(frozen=True)
class Readings:
    """What a probe answered: for each number of rows a list of samples, and so on."""

    experts: dict[int, list[Sample]]
    attention: list[Sample]
    attention_head_seconds: list[float]
    launch_seconds: list[float]


def take_readings(
    probe: Probe, rows: Sequence[int], rounds: int, advance: Callable[[], None]
) -> Readings:
    """Ask ``probe`` everything in turn, ``rounds`` times: what disturbs a round disturbs all.

    ``advance`` is called after each number of rows.
    """
    readings = Readings({count: [] for count in rows}, [], [], [])
    # The first round is not kept: it allocates, and wakes threads.
    for number in range(rounds + 1):
        for count in rows:
            sample = probe.experts(count)
            if number:
                readings.experts[count].append(sample)
            advance()
        attention, head_seconds = probe.attention(), probe.attention_head_seconds()
        launch_seconds = probe.launch_seconds()
        if number:
            readings.attention.append(attention)
            readings.attention_head_seconds.append(head_seconds)
            readings.launch_seconds.append(launch_seconds)
    return readings


def fit_processor(name: str, memory_bytes: int, readings: Readings) -> Processor:
    """The processor whose roofline gives the measured times back, from medians.

    The share of the peak at few rows is the one reached with weights from memory, as experts have
    them. It is less than with weights in a cache (on a Zen 5 CPU 0.14 against 0.31 at 4 rows)
    because reading and computing overlap imperfectly; with the latter,
    :meth:`Processor.gemm_seconds`, the larger of the two, came out up to a fifth too small at 4 to
    16 rows (benchmarks/calibration.py shows the errors). ``memory_efficiency`` is the share of the
    bandwidth at the least number of rows.
    """
    samples = [sample for of_rows in readings.experts.values() for sample in of_rows]
    peak = statistics.median(sample.roofline.gemm_flops_per_second for sample in samples)
    bandwidth = statistics.median(sample.roofline.read_bytes_per_second for sample in samples)
    shares = {
        rows: statistics.median(sample.share_of_peak for sample in of_rows)
        for rows, of_rows in readings.experts.items()
    }
    fewest = readings.experts[min(shares)]
    # Our kernels may outdo the linear that the roofline was measured with; shares end at 1.
    scale = max(1.0, *shares.values())
    return Processor(
        name=name,
        flops_per_second=peak * scale,
        memory_bytes=memory_bytes,
        memory_bytes_per_second=bandwidth,
        memory_efficiency=min(
            1.0, statistics.median(sample.share_of_bandwidth for sample in fewest)
        ),
        gemm_efficiency=EfficiencyCurve(
            rows=tuple(float(rows) for rows in sorted(shares)),
            shares=tuple(shares[rows] / scale for rows in sorted(shares)),
        ),
        attention_efficiency=min(
            1.0, statistics.median(sample.share_of_peak for sample in readings.attention) / scale
        ),
        attention_head_seconds=statistics.median(readings.attention_head_seconds),
        launch_seconds=statistics.median(readings.launch_seconds),
    )


def hardware_of(
    machine: Machine,
    dtype: Dtype,
    readings: Sequence[Readings],
    links: tuple[Link, Link] | None,
    source: str,
    expert_thresholds: ExpertThresholds | None = None,
) -> HardwareSpec:
    """The spec of ``machine``; ``readings`` of its CPU, and of its GPU if there are ``links``."""
    to_device, from_device = links or (None, None)
    return HardwareSpec(
        name=machine.name,
        source=source,
        dtype=dtype,
        cpu=fit_processor(machine.cpu, machine.memory_bytes, readings[0]),
        gpu=fit_processor(machine.gpu, machine.gpu_memory_bytes, readings[1])
        if machine.gpu
        else None,
        host_to_device=to_device,
        device_to_host=from_device,
        expert_thresholds=expert_thresholds,
    )


def _source(quick: bool) -> str:
    command = "coxmoe calibrate --quick" if quick else "coxmoe calibrate"
    return f"measured {datetime.date.today().isoformat()} by {command}"
