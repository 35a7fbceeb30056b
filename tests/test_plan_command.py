"""``coxmoe plan``: a table to read, objects for programs, refusals that say what is lacking."""

import json
from pathlib import Path

import numpy as np
import pytest

from coxcompile.cli import main
from coxcompile.planner.activation_map import ActivationMap
from coxcompile.planner.models import MODELS
from coxcompile.planner.policies import POLICIES
from coxcompile.planner.records import save
from coxcompile.systems import SYSTEMS

WORKLOAD = ("--batch", "64", "--input", "97", "--output", "8")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(("plan", *arguments, *WORKLOAD))
    return int(stopped.value.code or 0)


def test_table_has_every_policy_and_the_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", "deepseek-v2-lite", "--system", "rtx6000ada-8452y") == 0
    printed = capsys.readouterr().out
    assert "predicted, not measured" in printed
    assert all(policy in printed for policy in POLICIES)
    assert "why, for " in printed
    assert "attention on the" in printed


def test_json_is_one_object_a_policy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    system = ("--model", "deepseek-v2-lite", "--system", "a100-8452y")
    assert run(*system, "--policy", "coxmoe", "--json", "--trace", str(trace)) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert {"policy", "tokens_per_second", "prefill", "decode", "memory", "reasons"} <= set(plan)
    assert plan["policy"] == "coxmoe"
    assert plan["tokens_per_second"] > 0
    assert len(plan["decode"]["experts"]) == MODELS["deepseek-v2-lite"].moe_layers
    assert json.loads(trace.read_text())["traceEvents"]


def test_an_activation_map_changes_the_hit_ratio(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = MODELS["qwen3-30b-a3b"]
    counts = np.tile(np.arange(1, model.experts + 1) ** 2, (model.moe_layers, 1))
    layers = tuple(f"layers.{layer}" for layer in range(model.moe_layers))
    path = tmp_path / "map.safetensors"
    ActivationMap(
        counts=counts,
        layers=layers,
        model=model.name,
        tokens=int(counts[0].sum()) // model.top_k,
        strategy="test",
        seed=0,
    ).save(path)
    ratios = []
    for extra in ((), ("--activation-map", str(path))):
        named = ("--model", model.name, "--system", "rtx6000ada-8452y", "--policy", "coxmoe")
        assert run(*named, "--json", *extra) == 0
        ratios.append(json.loads(capsys.readouterr().out)[0]["decode"]["hit_ratio"])
    assert ratios[0] < ratios[1]


def test_what_fits_nowhere_says_what_is_lacking(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", "deepseek-v3", "--system", "rtx4090-7950x", "--policy", "cpu-only") == 1
    assert "host memory lacks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "qwen3-30b", "did you mean qwen3-30b-a3b"),
        ("--system", "rtx6000", "no system 'rtx6000'"),
        ("--policy", "cpuonly", "did you mean cpu-only"),
    ],
)
def test_unknown_names_are_refused(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--model": "qwen3-30b-a3b", "--system": "a100-8452y", option: value}
    assert run(*(word for pair in given.items() for word in pair)) == 2
    assert message in capsys.readouterr().err


def test_model_and_system_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, system = tmp_path / "model.toml", tmp_path / "system.json"
    save(MODELS["qwen3-30b-a3b"], model)
    save(SYSTEMS["a100-8452y"], system)
    files = ("--model", str(model), "--system", str(system), "--policy", "cpu-only", "--json")
    assert run(*files) == 0
    assert json.loads(capsys.readouterr().out)[0]["policy"] == "cpu-only"
