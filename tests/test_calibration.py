"""Calibration against machines whose speeds are known; nothing real is timed."""

import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from coxcompile import calibration
from coxcompile.calibration import Readings, calibrate, fit_processor, hardware_of, take_readings
from coxcompile.expert_thresholds import thresholds_in_force
from coxcompile.hardware import EfficiencyCurve, Link, Processor
from coxcompile.machine import Machine
from coxcompile.measurement import cpu, gpu
from coxcompile.measurement.attention import causal_attention
from coxcompile.measurement.cpu import CpuProbe, ExpertLayer
from coxcompile.measurement.probe import Sample
from coxcompile.measurement.roofline import Roofline
from coxcompile.ops import CPU_KERNELS

ROWS = (1, 4, 16, 64)
TRUTH = Processor(
    name="known",
    flops_per_second=1e12,
    memory_bytes=2**34,
    memory_bytes_per_second=5e10,
    memory_efficiency=0.8,
    gemm_efficiency=EfficiencyCurve(rows=ROWS, shares=(0.2, 0.3, 0.5, 0.9)),
    attention_efficiency=0.25,
    attention_head_seconds=2e-6,
    launch_seconds=1e-5,
)
WEIGHTS = 10**8


class KnownProbe:
    """Answers as TRUTH would, each round ``slowness`` times as slow in everything."""

    def __init__(self, slowness: tuple[float, ...] = (1.0,), gemm_share: float = 1.0) -> None:
        self.slowness = slowness
        self.gemm_share = gemm_share
        self.asked: list[int | str] = []

    def _factor(self) -> float:
        finished = self.asked.count("launch")
        return self.slowness[finished % len(self.slowness)]

    def _sample(self, flops: float, bytes_read: float, seconds: float) -> Sample:
        factor = self._factor()
        roofline = Roofline(
            self.gemm_share * TRUTH.flops_per_second / factor,
            TRUTH.memory_bytes_per_second / factor,
        )
        return Sample(flops, bytes_read, seconds * factor, roofline)

    def experts(self, rows: int) -> Sample:
        self.asked.append(rows)
        flops, size = 2.0 * rows * WEIGHTS, 2.0 * WEIGHTS
        return self._sample(flops, size, TRUTH.gemm_seconds(flops, size, rows))

    def attention(self) -> Sample:
        self.asked.append("attention")
        seconds = 1e9 / (TRUTH.flops_per_second * TRUTH.attention_efficiency)
        return self._sample(1e9, 1.0, seconds)

    def attention_head_seconds(self) -> float:
        return TRUTH.attention_head_seconds * self._factor()

    def launch_seconds(self) -> float:
        factor = self._factor()
        self.asked.append("launch")
        return TRUTH.launch_seconds * factor


def read(probe: KnownProbe, rounds: int = 3) -> Readings:
    return take_readings(probe, ROWS, rounds, lambda: None)


def test_the_fit_gives_the_measured_times_back() -> None:
    fitted = fit_processor("known", TRUTH.memory_bytes, read(KnownProbe()))
    assert fitted.flops_per_second == pytest.approx(TRUTH.flops_per_second)
    assert fitted.memory_bytes_per_second == pytest.approx(TRUTH.memory_bytes_per_second)
    assert fitted.memory_efficiency == pytest.approx(TRUTH.memory_efficiency)
    assert fitted.attention_efficiency == pytest.approx(TRUTH.attention_efficiency)
    assert fitted.attention_head_seconds == TRUTH.attention_head_seconds
    assert fitted.launch_seconds == TRUTH.launch_seconds
    for rows in ROWS:
        work = 2.0 * rows * WEIGHTS, 2.0 * WEIGHTS, float(rows)
        assert fitted.gemm_seconds(*work) == pytest.approx(TRUTH.gemm_seconds(*work))
    # Other sizes of experts too, as long as the rows are those measured.
    assert fitted.gemm_seconds(32.0, 2.0, 16.0) == pytest.approx(
        TRUTH.gemm_seconds(32.0, 2.0, 16.0)
    )


def test_a_machine_that_drifts_keeps_its_shares_and_gets_median_speeds() -> None:
    steady = fit_processor("known", 1, read(KnownProbe()))
    # The round that is not kept comes first.
    drifting = fit_processor("known", 1, read(KnownProbe(slowness=(9.0, 1.0, 2.0, 5.0))))
    assert drifting.gemm_efficiency.shares == pytest.approx(steady.gemm_efficiency.shares)
    assert drifting.memory_efficiency == pytest.approx(steady.memory_efficiency)
    assert drifting.flops_per_second == pytest.approx(steady.flops_per_second / 2)
    assert drifting.launch_seconds == pytest.approx(2 * steady.launch_seconds)


def test_kernels_faster_than_the_roofline_raise_the_peak() -> None:
    """TRUTH's 0.9 of the peak at 64 rows is 1.8 times a roofline of half its peak."""
    fitted = fit_processor("known", 1, read(KnownProbe(gemm_share=0.5)))
    assert fitted.gemm_efficiency.shares[-1] == 1
    assert fitted.flops_per_second == pytest.approx(0.9 * TRUTH.flops_per_second)
    work = 2.0 * 64 * WEIGHTS, 2.0 * WEIGHTS, 64.0
    assert fitted.gemm_seconds(*work) == pytest.approx(TRUTH.gemm_seconds(*work))


def test_rounds_ask_everything_in_turn_and_the_first_is_not_kept() -> None:
    probe = KnownProbe()
    advanced: list[int] = []
    readings = take_readings(probe, (1, 4), 2, lambda: advanced.append(len(probe.asked)))
    assert probe.asked == [1, 4, "attention", "launch"] * 3
    assert len(advanced) == 6
    assert {rows: len(samples) for rows, samples in readings.experts.items()} == {1: 2, 4: 2}
    assert len(readings.attention) == len(readings.launch_seconds) == 2


def test_a_machine_with_a_gpu_gets_both_processors_and_links() -> None:
    machine = Machine(cpu="C", memory_bytes=5, gpu="G", gpu_memory_bytes=3)
    links = Link(bytes_per_second=2), Link(bytes_per_second=1)
    spec = hardware_of(machine, "float32", [read(KnownProbe())] * 2, links, "here")
    assert spec.gpu is not None
    assert (spec.name, spec.cpu.name, spec.gpu.name) == ("C + G", "C", "G")
    assert (spec.cpu.memory_bytes, spec.gpu.memory_bytes) == (5, 3)
    assert (spec.host_to_device, spec.device_to_host) == links
    assert (spec.dtype, spec.source) == ("float32", "here")


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one loop of the expert kernel alone."""
    monkeypatch.setattr(calibration, "this_machine", lambda: Machine(cpu="C", memory_bytes=5))
    monkeypatch.setattr(calibration, "CpuProbe", lambda dtype: KnownProbe())
    monkeypatch.setattr(calibration, "expert_loops", lambda: ())


@pytest.mark.usefixtures("known_machine")
@pytest.mark.parametrize(("quick", "rows"), [(False, 10), (True, 5)])
def test_calibrate_describes_this_machine(quick: bool, rows: int) -> None:
    spec = calibrate(progress=False, quick=quick)
    assert (spec.name, spec.dtype, spec.gpu) == ("C", "bfloat16", None)
    assert spec.source.startswith("measured ")
    assert ("--quick" in spec.source) == quick
    assert len(spec.cpu.gemm_efficiency.rows) == rows
    assert spec.expert_thresholds is None


@pytest.mark.skipif(CPU_KERNELS != "native", reason="the C++ kernels are not built")
@pytest.mark.usefixtures("known_machine")
def test_speeds_are_measured_with_the_thresholds_found(monkeypatch: pytest.MonkeyPatch) -> None:
    before = thresholds_in_force()
    found = replace(before, last_vector=3)
    seen = []

    class Watching(KnownProbe):
        def launch_seconds(self) -> float:
            seen.append(thresholds_in_force())
            return super().launch_seconds()

    monkeypatch.setattr(calibration, "CpuProbe", lambda dtype: Watching())
    monkeypatch.setattr(calibration, "expert_loops", lambda: ("columns",))
    monkeypatch.setattr(calibration, "measure_thresholds", lambda advance: found)
    assert calibrate(progress=False).expert_thresholds == found
    assert set(seen) == {found}
    assert thresholds_in_force() == before
    seen.clear()
    for others in ({"quick": True}, {"dtype": "float32"}):
        assert calibrate(progress=False, **others).expert_thresholds is None  # type: ignore[arg-type]
    assert set(seen) == {before}


def test_an_unknown_dtype_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "CpuProbe", pytest.fail)
    with pytest.raises(ValueError, match="dtype is 'int8', but must be one of bfloat16, float32"):
        calibrate(dtype="int8")  # type: ignore[arg-type]


@pytest.fixture
def no_roofline(monkeypatch: pytest.MonkeyPatch) -> Roofline:
    roofline = Roofline(1e12, 1e10)
    monkeypatch.setattr(cpu, "measure_roofline", lambda dtype: roofline)
    return roofline


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_expert_gets_its_rows(
    dtype: torch.dtype, no_roofline: Roofline, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = ExpertLayer(experts=6, top_k=2, hidden=32, intermediate=16)
    chosen = []
    original = torch.ops.coxmoe.coalesced_experts

    def counting(*arguments: torch.Tensor) -> torch.Tensor:
        chosen.append(arguments[1])
        return original(*arguments)

    monkeypatch.setattr(torch.ops.coxmoe, "coalesced_experts", counting)
    sample = CpuProbe(dtype, layer).experts(5)
    assert chosen[0].flatten().bincount().tolist() == [5] * 6
    assert all(len(set(experts)) == 2 for experts in chosen[0].tolist())
    assert sample.flops == 6 * 5 * 6 * 32 * 16
    assert sample.bytes_read == (6 * 3 * 32 * 16 + 15 * 32) * dtype.itemsize
    assert sample.seconds > 0
    assert sample.roofline is no_roofline


def test_attention_counts_the_unmasked_half(no_roofline: Roofline) -> None:
    def clock(call: Callable[[], object]) -> float:
        assert call().shape == (2, 16, 1024, 128)  # type: ignore[attr-defined]
        return 4.0

    sample = causal_attention(torch.float32, torch.device("cpu"), lambda: no_roofline, clock)
    assert sample.flops == 2 * 16 * 1024**2 * 128 * 2
    assert sample.seconds == 4.0


def test_launches_are_timed_one_by_one(
    no_roofline: Roofline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "seconds_of", lambda call: 4.0)
    assert CpuProbe(torch.bfloat16).launch_seconds() == 4.0 / 200


def test_a_link_is_its_bandwidth_beside_its_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe's arithmetic, on the CPU as its own device: no GPU is at hand."""
    monkeypatch.setattr(gpu, "LINK_BYTES", 1000)
    times = [3.0, 2.0, 5.0, 9.0, 2.0, 12.0, 15.0, 13.0, 12.0, 14.0]
    clock = iter(times)
    probe = gpu.GpuProbe(torch.bfloat16, torch.device("cpu"))
    monkeypatch.setattr(probe, "_seconds_of", lambda call: (call(), next(clock))[1])
    target, source = torch.zeros(1000), torch.ones(1000)
    link = probe._link(target, source)
    assert link == Link(bytes_per_second=100, latency_seconds=2.0)
    assert target.equal(source)
    assert statistics.median(times[5:]) == 13.0, "the fastest counts, not the median"
