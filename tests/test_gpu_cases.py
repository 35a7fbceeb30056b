"""What benchmarks/gpu_check.py and gpu_bench.py run, on CPU tensors: kernels are interpreted."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

pytest.importorskip("triton")
pytest.importorskip("transformers")

import gpu_bench_generation
import gpu_bench_kernels
import gpu_bench_transfers
import gpu_check_configurations
import gpu_check_kernels
import gpu_check_layer
import gpu_check_models
import gpu_check_on_cuda
import gpu_check_sanitizer
import gpu_check_variants
from gpu_cases import Row, SkippedError, run_case

from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.measurement import product_bench
from coxcompile.measurement.device_timing import DeviceClock
from coxcompile.measurement.roofline import Roofline
from coxcompile.options import Options
from coxcompile.runtime.emulated.triton_driver import triton_target
from coxcompile.runtime.kernels.gpu import experts as gpu_experts
from coxcompile.runtime.kernels.gpu.configurations import Row as TableRow
from coxcompile.runtime.session import Session
from tests.gpu_stand_ins import stand_in_for_cuda
from tests.models import build

CPU = torch.device("cpu")
TINY = gpu_check_variants.Size(experts=4, top_k=2, hidden=64, intermediate=64, tokens=9)
TABLE = (
    TableRow(
        device="sm_90",
        weights="bfloat16",
        tokens_per_expert=16,
        configuration=gpu_check_layer.SMALL_TILES,
        source="static",
    ),
)


def tiny_rows(*names: str, target: str = "sm_90") -> list[Row]:
    chosen = [
        (name, replace(variant, size=TINY))
        for name, variant in gpu_check_variants.variants()
        if name in names
    ]
    assert len(chosen) == len(names)
    with triton_target(target):
        return [
            row
            for case in gpu_check_kernels.cases_of(chosen, CPU)
            for row in run_case("kernels", case)
        ]


def test_variants_are_checked() -> None:
    names = ("bfloat16 bias", "int4 in 4 groups", "float8 by descriptors")
    rows = tiny_rows(*names, "experts that are not here")
    assert all(row.outcome == "passed" for row in rows), rows
    assert all(0 < row.figures[part] < 1e-6 for row in rows for part in ("gate_up", "down"))


def test_descriptors_are_skipped_without_the_unit() -> None:
    (row,) = tiny_rows("persistent by descriptors", target="sm_80")
    assert row.outcome == "skipped"


@pytest.mark.parametrize("kernel", ["gate_up_", "down_", "combine_"])
def test_a_wrong_kernel_fails(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(product_bench, kernel)

    def wrong(result: torch.Tensor, *arguments: Any, **names: Any) -> None:
        right(result, *arguments, **names)
        result[-1, -1] += 0.01

    monkeypatch.setattr(product_bench, kernel, wrong)
    (row,) = tiny_rows("bfloat16")
    assert row.outcome == "failed"
    assert "is beyond 1.0e-05" in row.reason


def test_names_are_told_apart() -> None:
    names = [name for name, _ in gpu_check_variants.variants()]
    assert len(set(names)) == len(names)
    assert set(gpu_check_sanitizer.NAMES) < set(names)


def test_layers_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_experts, "load_table", lambda: TABLE)
    with triton_target("sm_90"):
        against = gpu_check_layer.against_grouped(gpu_check_layer.GPT_OSS, TINY, CPU)
        assert 0 < against["error"] <= against["bound"] < 1e-2
        assert gpu_check_layer.repeated(TINY, CPU)["error"] == 0
        assert gpu_check_layer.halved(TINY, CPU)["error"] == 0


def test_bits_that_differ_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()
    monkeypatch.setattr(
        gpu_check_layer, "run_experts_", lambda output, *_, **__: output.fill_(next(numbers))
    )
    with triton_target("sm_90"):
        assert gpu_check_layer.repeated(TINY, CPU)["error"] == TINY.tokens * TINY.hidden


def test_configurations_of_the_table_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_configurations, "load_table", lambda: TABLE)
    monkeypatch.setattr(gpu_check_configurations, "CONFIGURED", TINY)
    with triton_target("sm_90"):
        cases = gpu_check_configurations.configuration_cases(CPU)
        assert [row.outcome for row in run_case("table", cases[0])] == ["passed"]
        assert len(cases) == 2
    with triton_target("sm_120"), pytest.raises(LookupError, match="no row for sm_120"):
        gpu_check_configurations.configuration_cases(CPU)


def test_models_are_compiled_for_cuda() -> None:
    options = gpu_check_on_cuda.options(Session(), 1 << 20, "coxmoe")
    accepted = Options.from_user(options)
    assert accepted.accelerator == "cuda"
    assert accepted.hardware is not None
    assert accepted.hardware.gpu_reserve_bytes == 1 << 16
    names = [case.name for case in gpu_check_models.coexecution_cases(CPU)]
    assert "attention masks" in names
    assert not any("family" in name for name in names)


def test_kernels_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(
        seconds=lambda call: (call(), 1e-3)[1], roofline=lambda: Roofline(1e12, 1e11)
    )
    monkeypatch.setattr(gpu_bench_kernels, "_clock", lambda device: clock)
    monkeypatch.setattr(gpu_bench_kernels, "ROUNDS", 1)
    monkeypatch.setattr(gpu_experts, "load_table", lambda: TABLE)
    layer = ExpertLayer(name="tiny", experts=4, top_k=2, hidden=64, intermediate=64)
    with triton_target("sm_90"):
        figures = gpu_bench_kernels.compared(layer, 5, CPU)
    # All four experts are read: 3 * 64 * 64 numbers of two bytes each.
    assert figures["roofline µs"] == pytest.approx((4 * 24576 + 5 * 64 * 6) / 1e11 * 1e6)
    assert figures["Triton µs"] == figures["grouped_mm µs"] == pytest.approx(1e3)
    assert figures["grouped_mm / Triton"] == 1


def test_transfers_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_cuda(monkeypatch)
    for name, value in (("COPIED_BYTES", 1 << 10), ("GEMM_SIZE", 8), ("PRODUCTS", 2)):
        monkeypatch.setattr(gpu_bench_transfers, name, value)
    figures = gpu_bench_transfers.together(CPU)
    assert set(figures["to the device + from it + products"]) == {
        "GB/s to it",
        "GB/s from it",
        "TFLOP/s",
    }
    assert all(value > 0 for one in figures.values() for value in one.values())


def test_the_clock_flushes_and_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_cuda(monkeypatch)
    monkeypatch.setattr("coxcompile.measurement.device_timing.FLUSHED_BYTES", 1 << 12)
    monkeypatch.setattr("coxcompile.measurement.device_timing.GEMM_SIZE", 16)
    clock = DeviceClock(CPU)
    asked: list[int] = []
    assert clock.seconds(lambda: asked.append(1)) > 0
    assert asked == [1]
    rates = clock.roofline()
    assert min(rates.gemm_flops_per_second, rates.read_bytes_per_second) > 0


def test_generations_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_cuda(monkeypatch)
    model = build("qwen3_moe", layers=1)
    sizes = {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128}
    monkeypatch.setattr(gpu_bench_generation, "LAYER", sizes)
    monkeypatch.setattr(gpu_bench_generation, "build_model", lambda layers: model)
    race = gpu_bench_generation.Race(gpu_bench_generation.Sizes(1, 2, 6, 3), CPU)
    with pytest.raises(SkippedError):
        race.measure(2, "eager")
    assert race.prepare("eager", race.on_device, CPU)["compiling s"] >= 0
    race.prepare("again", race.on_host, CPU)
    figures = race.measure(2, "eager")
    assert set(figures) == {"eager", "again"}
    assert figures["again"]["difference"] == 0
    assert figures["again"]["new tokens/s"] > 0
