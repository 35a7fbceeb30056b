"""Thresholds between the CPU kernel's loops: chosen from made-up seconds, kept, put in force."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from numerics import reference_experts, relative_error
from test_hardware import BOX
from test_ops import TOLERANCE, Case

from coxcompile import expert_thresholds
from coxcompile.commands.doctor import loops
from coxcompile.expert_thresholds import (
    apply_calibrated_thresholds,
    restored_thresholds,
    set_thresholds,
    thresholds_in_force,
)
from coxcompile.hardware import ExpertThresholds, HardwareSpec
from coxcompile.machine import Machine
from coxcompile.measurement import expert_loops
from coxcompile.measurement.cpu import ExpertLayer
from coxcompile.measurement.expert_loops import (
    STEPS,
    Candidate,
    LoopBench,
    least_tokens,
    measure_thresholds,
)
from coxcompile.ops import CPU_KERNELS
from coxcompile.planner.records import RecordError, from_builtins, load, save, to_builtins

native = pytest.mark.skipif(CPU_KERNELS != "native", reason="the C++ kernels are not built")
SOME = ExpertThresholds(columns=20, last_vector=9, panels=40, kernels=("avx512_bf16", "columns"))
TINY = ExpertLayer(experts=4, top_k=2, hidden=32, intermediate=16)


@pytest.fixture
def restored() -> Iterator[ExpertThresholds]:
    """Also forgets that calibrated thresholds were looked for; gives those in force before."""
    apply_calibrated_thresholds.cache_clear()
    with restored_thresholds() as before:
        yield before
    apply_calibrated_thresholds.cache_clear()


def medians(seconds: dict[int, tuple[float, float]]) -> dict[Candidate, float]:
    """Of candidates with so many tokens: on, off."""
    return {
        Candidate(tokens, on, False, SOME): pair[0 if on else 1]
        for tokens, pair in seconds.items()
        for on in (True, False)
    }


@pytest.mark.parametrize(
    ("seconds", "least"),
    [
        ({8: (3, 1), 16: (2, 2), 32: (2, 3), 64: (2, 9)}, 32),
        ({64: (2, 9), 8: (1, 2), 16: (1, 2)}, 8),
        # Faster once below a number for which it is slower: that one does not count.
        ({8: (1, 2), 16: (3, 2), 32: (2, 3)}, 32),
        ({8: (1, 2), 16: (3, 2)}, None),
        ({8: (2, 2)}, None),
    ],
)
def test_a_loop_starts_where_it_stays_faster(
    seconds: dict[int, tuple[float, float]], least: int | None
) -> None:
    assert least_tokens(medians(seconds)) == least


class KnownBench:
    """Takes as long as the truth says of what is in force; ``asked`` has every call."""

    def __init__(self, truth: ExpertThresholds) -> None:
        self.truth = truth
        self.asked: list[tuple[Candidate, int]] = []

    def run(self, candidate: Candidate, number: int) -> float:
        self.asked.append((candidate, number))
        tokens, chosen, truth = candidate.tokens, candidate.thresholds, self.truth
        set_thresholds(chosen)
        if chosen.panels:
            return 2.0 if tokens >= truth.panels else 4.0
        if not chosen.columns:
            return 3.0
        left_over = tokens % 16
        seconds = 2.5 if tokens >= truth.columns else 3.5
        if left_over:
            filled = left_over >= chosen.last_vector
            seconds += 0.0 if filled == (left_over >= truth.last_vector) else 0.1
        return seconds


@pytest.fixture
def all_loops(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the measurement believe in these loops."""

    def believe(*names: str) -> None:
        monkeypatch.setattr(expert_loops, "expert_loops", lambda: names)

    return believe


def fake_clock(call: Callable[[], object]) -> float:
    seconds = call()
    assert isinstance(seconds, float)
    return seconds


@native
@pytest.mark.parametrize("amx", [False, True], ids=["no AMX", "AMX"])
def test_the_measurement_finds_the_truth(
    amx: bool, all_loops: Callable[..., None], restored: ExpertThresholds
) -> None:
    all_loops("columns", "transposed panels", *(["panels"] if amx else []))
    bench = KnownBench(replace(SOME, last_vector=12, columns=24, panels=48))
    advanced: list[int] = []
    found = measure_thresholds(
        bench,  # type: ignore[arg-type]
        fake_clock,
        lambda: advanced.append(1),
    )
    assert (found.columns, found.last_vector, found.panels) == (24, 12, 48)
    assert thresholds_in_force() == restored
    assert len(advanced) == STEPS
    by_panels = {candidate for candidate, _ in bench.asked if candidate.thresholds.panels}
    assert {candidate.transposed for candidate in by_panels} == {not amx}
    others = {c for c, _ in bench.asked if not c.transposed and not c.thresholds.panels}
    assert {candidate.on for candidate in others} == {True, False}


@native
@pytest.mark.usefixtures("restored")
def test_loops_that_are_never_faster_are_never_used(all_loops: Callable[..., None]) -> None:
    all_loops("columns", "transposed panels")
    bench = KnownBench(replace(SOME, columns=10**6, last_vector=10**6, panels=10**6))
    found = measure_thresholds(bench, fake_clock)  # type: ignore[arg-type]
    assert (found.columns, found.last_vector, found.panels) == (0, 16, 0)


@native
def test_an_interrupted_measurement_restores(
    all_loops: Callable[..., None], restored: ExpertThresholds
) -> None:
    all_loops("columns")
    calls = iter(range(7))

    def interrupted(call: Callable[[], object]) -> float:
        call()
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        measure_thresholds(KnownBench(SOME), interrupted)  # type: ignore[arg-type]
    assert thresholds_in_force() == restored


def test_one_loop_alone_leaves_nothing_to_measure(all_loops: Callable[..., None]) -> None:
    all_loops()
    with pytest.raises(ValueError, match=r"expert_loops\(\) is empty here.*AVX512-BF16"):
        measure_thresholds()


@native
@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
def test_the_bench_gives_every_expert_its_tokens(
    transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = torch.ops.coxmoe.coalesced_experts, []

    def watching(*arguments: torch.Tensor, **options: bool) -> torch.Tensor:
        seen.append((*arguments[:2], options["transposed"]))
        return original(*arguments, **options)

    monkeypatch.setattr(torch.ops.coxmoe, "coalesced_experts", watching)
    bench = LoopBench(TINY)
    for number in range(2):
        assert bench.run(Candidate(35, True, transposed, SOME), number).shape == (70, 32)
    (first, expert_ids, asked), (second, _, _) = seen
    assert expert_ids.flatten().bincount().tolist() == [35] * 4
    assert asked is transposed
    assert not first.equal(second)


EXTREMES = [(0, 16, 0), (1, 1, 0), (1, 10**6, 0), (10**6, 10**6, 10**6), (1, 1, 1), (10**6, 1, 1)]


@native
@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("sizes", [(64, 48), (70, 45)], ids=["even", "odd"])
@pytest.mark.parametrize("thresholds", EXTREMES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_results_hold_under_any_thresholds(
    dtype: torch.dtype, thresholds: tuple[int, int, int], sizes: tuple[int, int], transposed: bool
) -> None:
    torch.ops.coxmoe.set_expert_thresholds(*thresholds)
    hidden, intermediate = sizes
    for tokens in (1, 17, 90, 600):
        arguments = Case(
            tokens=tokens,
            experts=3,
            hidden=hidden,
            intermediate=intermediate,
            dtype=dtype,
            transposed=transposed,
            routing="skewed",
        ).arguments()
        output = torch.ops.coxmoe.coalesced_experts(**arguments)
        assert relative_error(output, reference_experts(**arguments)) <= TOLERANCE[dtype]


@native
@pytest.mark.usefixtures("restored")
def test_thresholds_choose_columns() -> None:
    """They sum in an order of their own, so that results differ in some last bits."""
    if "columns" not in torch.ops.coxmoe.expert_loops():
        pytest.skip("this processor has no columns")
    arguments = Case(tokens=200, experts=3, hidden=512, dtype=torch.bfloat16).arguments()

    def result(*thresholds: int) -> torch.Tensor:
        torch.ops.coxmoe.set_expert_thresholds(*thresholds)
        output = torch.ops.coxmoe.coalesced_experts(**arguments)
        assert isinstance(output, torch.Tensor)
        return output

    never = result(0, 16, 0)
    assert never.equal(result(10**6, 16, 0))
    assert not never.equal(result(1, 16, 0))


@native
@pytest.mark.usefixtures("restored")
def test_what_is_set_is_in_force_where_there_is_the_loop() -> None:
    set_thresholds(SOME)
    there = torch.ops.coxmoe.expert_loops()
    found = thresholds_in_force()
    assert found.columns == (20 if "columns" in there else 0)
    assert found.last_vector == 9
    assert found.panels == (40 if "transposed panels" in there else 0)
    assert found.kernels[1:] == tuple(there)
    assert torch.ops.coxmoe.cpu_panel_tokens()["bfloat16"] == found.panels


@native
@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ((-1, 11, 64), "columns is -1, but must be a number of tokens, 1 or more; 0 for never"),
        ((27, 0, 64), "last_vector is 0, but must be a number of tokens, 1 or more; 16 for never"),
        ((27, 11, -2), "panels is -2, but must be a number of tokens, 1 or more; 0 for never"),
    ],
)
def test_the_kernel_refuses_before_anything_is_set(
    thresholds: tuple[int, int, int], message: str, restored: ExpertThresholds
) -> None:
    with pytest.raises(ValueError, match=f"set_expert_thresholds: {message}"):
        torch.ops.coxmoe.set_expert_thresholds(*thresholds)
    assert thresholds_in_force() == restored


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"columns": -1}, "columns is -1, but must be a number of tokens, 0 or more"),
        ({"last_vector": 0}, "last_vector is 0, but must be a number of tokens, 1 or more"),
        ({"panels": -3}, "panels is -3, but must be a number of tokens, 0 or more"),
    ],
)
def test_a_record_refuses(changed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SOME, **changed)  # type: ignore[arg-type]
    values = to_builtins(replace(BOX, expert_thresholds=SOME))
    values["expert_thresholds"] |= changed
    with pytest.raises(RecordError, match=message):
        from_builtins(HardwareSpec, values, "a file")


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_file_gives_them_back_and_an_old_one_has_none(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"hardware{suffix}"
    save(BOX, path)
    assert "expert_thresholds" not in path.read_text()
    assert load(HardwareSpec, path).expert_thresholds is None
    save(replace(BOX, expert_thresholds=SOME), path)
    assert load(HardwareSpec, path).expert_thresholds == SOME


@pytest.fixture
def file(tmp_path: Path, restored: ExpertThresholds, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The calibration file of a machine that is BOX: with thresholds of this processor's kernels.

    ``restored`` are not those of the file.
    """
    if not torch.ops.coxmoe.expert_loops():
        pytest.skip("this processor has one loop alone")
    path = tmp_path / "hardware.json"
    monkeypatch.setenv("COXMOE_HARDWARE", str(path))
    machine = Machine(cpu=BOX.cpu.name, memory_bytes=1)
    monkeypatch.setattr(expert_thresholds, "this_machine", lambda: machine)
    here = replace(restored, columns=restored.columns + 1, last_vector=3)
    save(replace(BOX, expert_thresholds=here), path)
    return path


@native
def test_this_machines_file_is_applied_once(file: Path) -> None:
    stored = load(HardwareSpec, file).expert_thresholds
    assert apply_calibrated_thresholds() == f"{BOX.source}, from {file}"
    assert thresholds_in_force() == stored
    torch.ops.coxmoe.set_expert_thresholds(5, 6, 7)
    apply_calibrated_thresholds()
    assert thresholds_in_force().last_vector == 6


@native
def test_compiling_applies_it(file: Path) -> None:
    torch._dynamo.reset()
    assert torch.compile(lambda x: x + 1, backend="coxmoe")(torch.zeros(2)).tolist() == [1, 1]
    assert thresholds_in_force() == load(HardwareSpec, file).expert_thresholds


@native
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"expert_thresholds": None}, "has none; run `coxmoe calibrate`, not --quick"),
        ({"cpu": replace(BOX.cpu, name="another")}, "is of 'another', not of 'a CPU'; run"),
        ({"expert_thresholds": SOME}, "is for avx512_bf16, columns, but this process has"),
    ],
    ids=["old file", "other machine", "other kernels"],
)
def test_another_file_is_not_applied(
    changed: dict[str, object], reason: str, file: Path, restored: ExpertThresholds
) -> None:
    if restored.kernels == SOME.kernels:
        pytest.skip("SOME is for this processor")
    save(replace(load(HardwareSpec, file), **changed), file)  # type: ignore[arg-type]
    source = apply_calibrated_thresholds()
    assert source.startswith(f"built in; {file} {reason}")
    assert thresholds_in_force() == restored


@native
def test_without_a_file_the_built_in_ones_stay(file: Path, restored: ExpertThresholds) -> None:
    file.unlink()
    assert apply_calibrated_thresholds().startswith(f"built in; there is no {file}")
    assert thresholds_in_force() == restored


@native
def test_a_damaged_file_is_an_error(file: Path) -> None:
    file.write_text("{")
    with pytest.raises(RecordError, match=r"hardware.json.*; run `coxmoe calibrate` again"):
        apply_calibrated_thresholds()


def test_the_doctors_words() -> None:
    assert loops(SOME) == "columns from 20 tokens on, a last vector from 9 on; panels from 40 on"
    assert loops(replace(SOME, columns=0)) == "panels from 40 on"
    assert loops(replace(SOME, columns=0, panels=0)) == "that of few tokens for any number"
