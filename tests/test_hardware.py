"""Processors, links, named systems and the machine at hand; nothing is measured."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from coxcompile import calibration, detection, machine, systems
from coxcompile.detection import calibration_file, detect_system
from coxcompile.hardware import EfficiencyCurve, HardwareSpec, Link, Processor
from coxcompile.machine import DetectionError, Machine, this_machine
from coxcompile.naming import UnknownNameError
from coxcompile.planner.records import RecordError, save
from coxcompile.systems import SYSTEMS, system_named

CPU = Processor(
    name="a CPU",
    flops_per_second=100.0,
    memory_bytes=1000,
    memory_bytes_per_second=20.0,
    memory_efficiency=0.5,
    gemm_efficiency=EfficiencyCurve(rows=(1, 4, 16), shares=(0.1, 0.5, 1.0)),
)
BOX = HardwareSpec(name="a CPU", source="made up", cpu=CPU)


def test_shares_are_interpolated_over_the_logarithm_and_held_outside() -> None:
    curve = CPU.gemm_efficiency
    assert [curve.share(rows) for rows in (1, 4, 16)] == pytest.approx([0.1, 0.5, 1.0])
    assert curve.share(2) == pytest.approx(0.3)
    assert (curve.share(0.5), curve.share(1000)) == (0.1, 1.0)
    assert curve.share(np.array([2.0, 16.0])) == pytest.approx(np.array([0.3, 1.0]))


@pytest.mark.parametrize(
    ("rows", "shares", "message"),
    [
        ((1, 2), (0.5,), "rows has 2 and shares 1 numbers"),
        ((), (), "at least one"),
        ((2, 1), (0.5, 0.6), "must ascend"),
        ((0, 1), (0.5, 0.6), "from a positive number"),
        ((1, 2), (0.5, 1.1), r"must lie in \(0, 1\]"),
        ((1, 2), (0.0, 1.0), r"must lie in \(0, 1\]"),
    ],
)
def test_a_curve_refuses(rows: tuple[float, ...], shares: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficiencyCurve(rows=rows, shares=shares)


def test_a_roofline_is_the_slower_of_products_and_reads() -> None:
    assert CPU.gemm_seconds(50.0, 20.0, 1.0) == pytest.approx(5.0), "10 FLOP/s at one row"
    assert CPU.gemm_seconds(50.0, 20.0, 16.0) == pytest.approx(2.0), "10 B/s"
    assert CPU.read_seconds(5.0) == pytest.approx(0.5)


def test_a_transfer_takes_its_latency_and_none_takes_nothing() -> None:
    link = Link(bytes_per_second=10, latency_seconds=1)
    assert (link.seconds(20), link.seconds(0)) == (3.0, 0.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"flops_per_second": 0.0}, "flops_per_second is 0.0"),
        ({"memory_efficiency": 1.5}, "memory_efficiency is 1.5"),
        ({"launch_seconds": -1.0}, "launch_seconds is -1.0"),
    ],
)
def test_a_processor_refuses(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CPU, **changed)  # type: ignore[arg-type]


def test_a_machine_refuses_a_gpu_without_links_and_a_disk_without_speed() -> None:
    with pytest.raises(ValueError, match="needs host_to_device"):
        replace(BOX, gpu=CPU)
    with pytest.raises(ValueError, match="disk_bytes_per_second"):
        replace(BOX, disk_bytes=1)


# Paper, evaluation: VRAM in GiB, host memory in GiB, bfloat16 TFLOP/s where it names them.
@pytest.mark.parametrize(
    ("name", "vram", "gpu_teraflops"),
    [("rtx6000ada-8452y", 48, 364), ("a100-8452y", 80, 312), ("h100-8452y", 80, None)],
)
def test_the_papers_systems(name: str, vram: int, gpu_teraflops: int | None) -> None:
    spec = system_named(name.upper())
    assert spec.gpu is not None
    assert spec.gpu.memory_bytes == vram * 2**30
    assert spec.cpu.memory_bytes == 512 * 2**30
    assert spec.cpu.flops_per_second == 144e12
    if gpu_teraflops:
        assert spec.gpu.flops_per_second == gpu_teraflops * 1e12


@pytest.mark.parametrize("spec", SYSTEMS.values(), ids=str)
def test_named_systems_are_sound(spec: HardwareSpec) -> None:
    assert spec.source == "data sheet"
    for processor in filter(None, (spec.cpu, spec.gpu)):
        # One row streams weights (one FLOP a byte in bfloat16), thousands of rows do not.
        assert processor.gemm_seconds(1.0, 1.0, 1.0) == processor.read_seconds(1.0)
        assert processor.gemm_seconds(8e3, 1.0, 8e3) > processor.read_seconds(1.0)
        # More rows take longer, but for the few percent by which interpolation misses a line.
        times = [processor.gemm_seconds(rows, 1.0, rows) for rows in range(1, 3000)]
        assert all(after >= 0.94 * before for before, after in pairwise(times))
    for link in filter(None, (spec.host_to_device, spec.device_to_host)):
        assert spec.gpu is not None
        assert link.bytes_per_second < spec.cpu.memory_bytes_per_second


def test_an_unknown_system_says_which_there_are_and_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean a100-8452y") as error:
        system_named("a100-8452")
    assert all(name in str(error.value) for name in SYSTEMS)


def test_a_system_can_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    save(BOX, path)
    assert system_named(str(path)) == BOX
    with pytest.raises(RecordError, match=r"other\.toml"):
        system_named(str(tmp_path / "other.toml"))


@pytest.fixture
def this_box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This machine is BOX, without a calibration file yet; returns where that would be."""
    monkeypatch.delenv("COXMOE_HARDWARE", raising=False)
    monkeypatch.setattr(detection, "CACHE", tmp_path)
    monkeypatch.setattr(detection, "this_machine", lambda: Machine(cpu="a CPU", memory_bytes=1000))
    return tmp_path / "hardware.json"


def test_the_calibration_file_is_this_system(this_box: Path) -> None:
    save(BOX, this_box)
    assert detect_system() == system_named("this") == BOX


def test_a_calibration_of_another_machine_or_dtype_is_refused(this_box: Path) -> None:
    save(replace(BOX, name="another"), this_box)
    with pytest.raises(DetectionError, match="'another', but this machine is 'a CPU': run `coxmoe"):
        detect_system()
    save(BOX, this_box.with_name("hardware-float32.json"))
    with pytest.raises(DetectionError, match="for bfloat16, not for float32: run `coxmoe calib"):
        detect_system("float32")


def test_the_environment_names_the_calibration_file(
    this_box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = this_box.with_name("named.toml")
    monkeypatch.setenv("COXMOE_HARDWARE", str(named))
    assert calibration_file() == named
    with pytest.raises(DetectionError, match=r"named.toml.*no such file: run `coxmoe calibrate`"):
        detect_system()
    save(BOX, named)
    assert detect_system() == BOX


def test_without_a_calibration_file_there_is_a_quick_measurement(
    this_box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def calibrate(**arguments: object) -> HardwareSpec:
        asked.append(arguments)
        return BOX

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    assert systems.detect_system("float32") == BOX
    assert asked == [{"progress": False, "quick": True, "dtype": "float32"}]
    assert not this_box.exists()


def test_the_machine_is_read_from_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "_gpu", lambda: ("a GPU", 7))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2})
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: A CPU: fast\n")
    (tmp_path / "meminfo").write_text("MemTotal:  2048 kB\nMemFree: 1 kB\n")
    found = this_machine()
    assert found == Machine(
        cpu="A CPU: fast (3 CPUs)", memory_bytes=2 * 2**20, gpu="a GPU", gpu_memory_bytes=7
    )
    assert found.name == "A CPU: fast (3 CPUs) + a GPU"


def test_no_proc_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROC", tmp_path)
    with pytest.raises(DetectionError, match="describe it in a HardwareSpec"):
        this_machine()
