"""``coxmoe tune``: what it refuses, chooses, drops and writes; kernels run interpreted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from coxcompile import tuning
from coxcompile.cli import main
from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.gpu_analysis.targets import TARGETS
from coxcompile.measurement import device_timing, likely_tiles
from coxcompile.measurement.device_timing import interleaved_medians
from coxcompile.measurement.product_bench import ProductBench, Tiles
from coxcompile.measurement.random_experts import ExpertForm, RandomExperts
from coxcompile.measurement.random_tokens import popularity, random_tokens
from coxcompile.runtime.emulated.triton_driver import triton_target
from coxcompile.runtime.kernels.gpu.configurations import (
    ExpertConfiguration,
    ProductConfiguration,
    Row,
    load_rows,
    look_up,
    save_rows,
)

CPU = torch.device("cpu")
LAYER = ExpertLayer(name="tiny", experts=4, top_k=2, hidden=64, intermediate=64)
PLAIN = ProductConfiguration(block_outputs=64, block_inputs=32, warps=4, stages=2)
BOTH = ExpertConfiguration(block_tokens=16, gate_up=PLAIN, down=PLAIN)
ROW = Row(
    device="A GPU",
    weights="bfloat16",
    tokens_per_expert=16,
    configuration=BOTH,
    source="tuned on A GPU",
    experts=4,
    intermediate=64,
    hidden=64,
)
SHAPE = "--experts 4 --hidden 64 --intermediate 64 --top-k 2"


def refusal(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["tune", *arguments.split()])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed


def test_without_a_gpu_a_line_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    printed = refusal("--model qwen3-30b-a3b", capsys)
    assert "torch finds none here" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give --model, or a whole shape: --experts and --hidden"),
        ("--experts 4 --hidden 8 --top-k 2", "a whole shape: --intermediate too"),
        ("--model mixtral-8x7b --top-k 2", "leave out --top-k"),
        ("--model mixtrall-8x7b", "did you mean mixtral-8x7b?"),
        ("--experts 4 --hidden 8 --intermediate 8 --top-k 5", "--top-k is 5, but there are 4"),
        (f"{SHAPE} --tokens 1,none", "--tokens is '1,none'"),
        (f"{SHAPE} --tokens 0", "--tokens is '0'"),
        (f"{SHAPE} --output nowhere/rows.json", "--output is nowhere/rows.json"),
        (f"{SHAPE} --output rows.toml", "--output is rows.toml"),
        (f"{SHAPE} --weights int5", "int5"),
    ],
)
def test_refusals(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(arguments, capsys)


def counting_clock() -> Callable[[Callable[[], object]], float]:
    """Makes each call faster than the one before."""
    calls = 0

    def seconds(call: Callable[[], object]) -> float:
        nonlocal calls
        call()
        calls += 1
        return 1 / calls

    return seconds


def test_a_row_of_tiles_that_were_run(tmp_path: Path) -> None:
    with triton_target("sm_90"):
        (tuned,) = tuning.tune(
            *(LAYER, "int8", [2]),
            device=CPU,
            device_name="A GPU",
            seconds_of=counting_clock(),
            candidates=1,
            rounds=4,
        )
    row = tuned.row
    assert replace(row, configuration=BOTH, tokens_per_expert=16, weights="bfloat16") == ROW
    assert not tuned.dropped
    likely = likely_tiles.likely_tiles(TARGETS["sm_90"], LAYER, "int8", 4, 1)
    assert tuned.timed == len(likely) == 4
    assert Tiles("gate_up", row.configuration.block_tokens, row.configuration.gate_up) in likely
    assert Tiles("down", row.configuration.block_tokens, row.configuration.down) in likely
    path = tmp_path / "rows.json"
    save_rows(path, [row])
    sizes = {"experts": 4, "intermediate": 64, "hidden": 64}
    found = look_up(load_rows(path), ("A GPU", "sm_90"), "int8", 1.5, **sizes)
    assert found == row.configuration


def test_likely_tiles_keep_padding_down() -> None:
    layer = replace(LAYER, hidden=2048, intermediate=768, experts=128, top_k=8)
    decode = likely_tiles.likely_tiles(TARGETS["sm_90"], layer, "bfloat16", 16, 3)
    prefill = likely_tiles.likely_tiles(TARGETS["sm_90"], layer, "bfloat16", 4096, 3)
    assert {tiles.block_tokens for tiles in decode} == {16}
    assert {tiles.block_tokens for tiles in prefill} == {16, 32, 64, 128}
    assert len(set(decode)) == len(decode) == 8
    assert sum(tiles.configuration.persistent for tiles in decode) == 2


@pytest.fixture
def bench() -> Any:
    form = ExpertForm()
    with triton_target("sm_90"):
        experts = RandomExperts(form, LAYER.experts, LAYER.hidden, LAYER.intermediate, CPU)
        likely = popularity("uniform", LAYER.experts, LAYER.top_k, CPU)
        tokens = random_tokens(5, LAYER.hidden, LAYER.top_k, form.dtype, likely)
        yield ProductBench(experts, [tokens], form.dtype)


@pytest.mark.parametrize("product", ["gate_up", "down"])
def test_objections(product: Any, bench: ProductBench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert likely_tiles.objection(bench, Tiles(product, 16, PLAIN), 1e-2) is None
    wrong = likely_tiles.objection(bench, Tiles(product, 16, PLAIN), 1e-9)
    assert "its error is" in str(wrong)
    huge = replace(PLAIN, block_outputs=256, block_inputs=128, stages=5)
    reason = likely_tiles.objection(bench, Tiles(product, 128, huge), 1e-2)
    assert "OutOfResources" in str(reason)
    monkeypatch.setattr(bench, "error", lambda tiles: float("nan"))
    assert likely_tiles.objection(bench, Tiles(product, 16, PLAIN), 1e-2) is not None


def test_rows_that_are_not_written_have_no_error_below_a_bound(
    bench: ProductBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "coxcompile.measurement.product_bench.gate_up_", lambda *arguments: arguments[0]
    )
    assert not bench.error(Tiles("gate_up", 16, PLAIN)) <= 1e9


def test_the_fastest_is_of_one_number_of_tokens() -> None:
    wide = replace(PLAIN, block_outputs=128)
    medians = {
        Tiles("gate_up", 16, PLAIN): 3.0,
        Tiles("gate_up", 16, wide): 2.0,
        Tiles("down", 16, PLAIN): 2.0,
        Tiles("gate_up", 32, PLAIN): 1.0,
        Tiles("down", 32, PLAIN): 4.0,
        Tiles("gate_up", 64, PLAIN): 0.1,
    }
    seconds, configuration = tuning.fastest(medians, {})
    assert seconds == 4.0
    assert configuration == replace(BOTH, gate_up=wide)


def test_nothing_that_works_is_an_error_with_an_example() -> None:
    with pytest.raises(LookupError, match="OutOfResources"):
        tuning.fastest({}, {Tiles("down", 16, PLAIN): "OutOfResources: too much"})


def test_merged_rows_replace_those_for_the_same() -> None:
    others = [
        replace(ROW, device="Another GPU"),
        replace(ROW, weights="int8"),
        replace(ROW, tokens_per_expert=64),
        replace(ROW, experts=None, intermediate=None, hidden=None),
    ]
    new = replace(ROW, configuration=replace(BOTH, block_tokens=32))
    assert tuning.merged([ROW, *others], [new]) == [*others, new]


def test_turns_are_taken_and_slow_ones_dropped() -> None:
    asked: list[tuple[str, int]] = []

    def timed(name: str) -> Callable[[int], object]:
        return lambda number: asked.append((name, number))

    def seconds_of(call: Callable[[], object]) -> float:
        call()
        return {"fast": 1.0, "close": 1.2, "slow": 3.0}[asked[-1][0]]

    names = ("fast", "close", "slow")
    medians = interleaved_medians(
        {name: timed(name) for name in names}, 5, seconds_of, drop_beyond=1.3
    )
    assert medians == {"fast": 1.0, "close": 1.2, "slow": 3.0}
    assert [name for name, number in asked if number == 1] == ["close", "slow", "fast"]
    assert [number for name, number in asked if name == "slow"] == [0, 1, 2, 3]
    assert [number for name, number in asked if name == "fast"] == [0, 1, 2, 3, 4, 5]


def test_the_command_keeps_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "folder" / "rows.json"
    other = replace(ROW, device="Another GPU")
    save_rows(path, [other, replace(ROW, configuration=replace(BOTH, block_tokens=64))])
    asked: list[Any] = []

    def tune(*arguments: Any, **names: Any) -> list[tuning.Tuned]:
        asked.append((*arguments, names["device_name"], names["rounds"]))
        return [tuning.Tuned(ROW, 1e-4, 7, {Tiles("down", 16, PLAIN): "OutOfResources: no"})]

    monkeypatch.setenv("COXMOE_TUNED", str(path))
    monkeypatch.setattr(tuning, "tune", tune)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    clock = SimpleNamespace(seconds=lambda call: 1.0)
    monkeypatch.setattr(device_timing, "DeviceClock", lambda device: clock)
    with pytest.raises(SystemExit) as stopped:
        main(["tune", *SHAPE.split(), "--tokens", "64,16", "--rounds", "4"])
    assert not stopped.value.code
    layer = replace(LAYER, name="the experts")
    assert asked == [(layer, "bfloat16", [16, 64], "A GPU", 4)]
    assert load_rows(path) == (other, ROW)
    printed = capsys.readouterr().out
    assert "100.0 µs for both projections, 7 tiles timed, 1 dropped" in printed
    assert str(path) in printed.replace("\n", "")
