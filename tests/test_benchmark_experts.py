"""benchmarks/experts.py: what it writes and what it refuses; no timings."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

pytest.importorskip("transformers")
pytest.importorskip("rich")

import experts
import experts_implementations
import experts_layers
import experts_timing

from coxcompile.measurement.roofline import Roofline

TINY = experts_layers.Layer("tiny", experts=8, top_k=2, hidden=64, intermediate=32, tokens=(2, 5))
IMPLEMENTATIONS = ("coxmoe", "grouped_mm", "eager loop", "per-expert linear")


@pytest.fixture
def tiny_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny layer to name, and a roofline that costs nothing."""
    monkeypatch.setitem(experts_layers.LAYERS, TINY.name, TINY)
    monkeypatch.setattr(experts_timing, "measure_roofline", lambda dtype: Roofline(1e12, 1e10))


@pytest.mark.usefixtures("tiny_layer")
def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "experts.json"
    experts.main(["--layer", "tiny", "--tokens", "1,9", "--repeats", "2", "--json", str(path)])
    rows = json.loads(path.read_text())
    assert {tuple(row) for row in rows} == {
        ("layer", "tokens", "routing", "implementation", "milliseconds", "over_roofline", "error")
    }
    assert [(row["tokens"], row["routing"], row["implementation"]) for row in rows] == [
        (tokens, routing, implementation)
        for tokens in (1, 9)
        for routing in ("uniform", "skewed")
        for implementation in ("roofline", *IMPLEMENTATIONS)
    ]
    for row in rows:
        assert row["layer"] == "tiny"
        assert row["milliseconds"] > 0
        assert row["over_roofline"] > 0
        if row["implementation"] == "roofline":
            assert (row["over_roofline"], row["error"]) == (1, None)
        else:
            assert 0 < row["error"] < 1e-2
    printed = capsys.readouterr().out
    assert "relative error against float32: coxmoe" in printed
    assert "geometric mean" not in printed


@pytest.mark.usefixtures("tiny_layer")
def test_a_layer_has_its_own_numbers_of_tokens(tmp_path: Path) -> None:
    path = tmp_path / "experts.json"
    experts.main(f"--layer tiny --routing uniform --repeats 1 --json {path}".split())
    rows = json.loads(path.read_text())
    assert list(dict.fromkeys(row["tokens"] for row in rows)) == [2, 5]


@pytest.mark.usefixtures("tiny_layer")
def test_only_one_routing(tmp_path: Path) -> None:
    path = tmp_path / "experts.json"
    experts.main(f"--layer tiny --tokens 3 --routing skewed --repeats 1 --json {path}".split())
    assert {row["routing"] for row in json.loads(path.read_text())} == {"skewed"}


@pytest.mark.parametrize("routing", [*experts_layers.ROUTINGS, experts_layers.EVEN])
def test_implementations_agree(routing: str) -> None:
    torch.manual_seed(0)
    weights = experts_layers.random_weights(TINY)
    inputs = experts_layers.random_inputs(TINY, 40, routing)
    compared = experts.implementations(TINY, weights, {}, with_slow=True)
    assert tuple(compared) == IMPLEMENTATIONS
    with torch.inference_mode():
        errors = experts_timing.errors_against_float32(inputs, weights, compared)
    assert tuple(errors) == IMPLEMENTATIONS
    assert all(0 < error < 1e-2 for error in errors.values()), errors


@pytest.mark.parametrize("wrong", [lambda output: 1.02 * output, lambda output: output * torch.nan])
def test_a_wrong_result_is_refused(wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    weights = experts_layers.random_weights(TINY)
    inputs = experts_layers.random_inputs(TINY, 3, "uniform")
    right = experts_implementations.own_implementation(weights)
    mistaken = experts_implementations.Implementation(lambda *inputs: wrong(right.experts(*inputs)))
    with pytest.raises(
        experts_timing.WrongResultError, match=r"^mistaken computes something else: .* 3 tokens"
    ):
        experts_timing.errors_against_float32(
            inputs, weights, {"right": right, "mistaken": mistaken}
        )


def test_even_routing_gives_every_expert_as_many_tokens() -> None:
    _, expert_ids, _ = experts_layers.random_inputs(TINY, 7, experts_layers.EVEN)
    assert expert_ids.sort(dim=-1).values.diff(dim=-1).min() > 0
    loads = expert_ids.flatten().bincount(minlength=TINY.experts)
    assert loads.max() - loads.min() <= 1


def test_skewed_routing_is_more_uneven_than_uniform() -> None:
    torch.manual_seed(0)

    def largest_load(routing: str) -> int:
        _, expert_ids, _ = experts_layers.random_inputs(TINY, 1000, routing)
        assert expert_ids.sort(dim=-1).values.diff(dim=-1).min() > 0
        return int(expert_ids.flatten().bincount().max())

    assert largest_load("skewed") > 1.5 * largest_load("uniform")


def test_roofline_counts_active_experts_once() -> None:
    expert_ids = torch.tensor([[0, 1], [1, 2]])
    expert_elements = 3 * TINY.hidden * TINY.intermediate
    only_reads = experts_timing.roofline_seconds(TINY, expert_ids, Roofline(float("inf"), 1.0))
    assert only_reads == 2 * (3 * expert_elements + 2 * 2 * TINY.hidden)
    only_products = experts_timing.roofline_seconds(TINY, expert_ids, Roofline(1.0, float("inf")))
    assert only_products == 2 * 4 * expert_elements


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "qwen3-30b"], r"--layer: no layer 'qwen3-30b'; use one of .*did you mean"),
        (["--tokens", "1,x"], r"--tokens: '1,x' is not a list .*use e\.g\."),
        (["--tokens", "0"], r"--tokens: '0' is not"),
        (["--repeats", "0"], r"--repeats: '0' is not .*use e\.g\."),
        (["--routing", "zipf"], r"--routing: invalid choice: 'zipf' \(choose from"),
        (["--slow-baselines"], r"--slow-baselines goes with --peers; .*run anyway"),
        (["--json", "missing/rows.json"], r"--json: 'missing/rows\.json'.*make it first"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        experts.main(arguments)
    error = capsys.readouterr().err
    assert re.search(message, error), error
