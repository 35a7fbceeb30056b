"""The command line: what it prints, what it refuses, and what it does not import."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from coxcompile import calibration, detection
from coxcompile.cli import main
from coxcompile.hardware import HardwareSpec
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.models import MODELS
from coxcompile.planner.records import from_builtins, load
from coxcompile.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
BOX = SYSTEMS["rtx6000ada-8452y"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(("command", "names"), [("models", MODELS), ("systems", SYSTEMS)])
def test_a_table_names_them_all_in_full(
    command: str,
    names: dict[str, object],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert "…" not in printed


def test_models_as_json_are_the_specs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--json") == 0
    read = [from_builtins(ModelSpec, item, "") for item in json.loads(capsys.readouterr().out)]
    assert read == list(MODELS.values())


def test_systems_as_json_are_the_specs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("systems", "--json") == 0
    read = [from_builtins(HardwareSpec, item, "") for item in json.loads(capsys.readouterr().out)]
    assert read == list(SYSTEMS.values())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Calibrating gives BOX at once; what it was called with."""
    calls: list[dict[str, object]] = []

    def calibrate(**arguments: object) -> HardwareSpec:
        calls.append(arguments)
        return BOX

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    return calls


def test_calibrate_writes_where_it_is_read(
    asked: list[dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("COXMOE_HARDWARE", raising=False)
    monkeypatch.setattr(detection, "CACHE", tmp_path / "cache")
    assert run("calibrate", "--quick") == 0
    assert asked == [{"quick": True, "dtype": "bfloat16"}]
    assert load(HardwareSpec, detection.calibration_file()) == BOX
    printed = capsys.readouterr().out
    assert "364 TFLOP/s" in printed
    assert "25.6 GB/s" in printed
    assert str(detection.calibration_file()) in printed.replace("\n", "")


def test_calibrate_into_a_file(asked: list[dict[str, object]], tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    assert run("calibrate", "--output", str(path), "--dtype", "float32") == 0
    assert asked == [{"quick": False, "dtype": "float32"}]
    assert load(HardwareSpec, path) == BOX


@pytest.mark.parametrize(
    ("output", "message"),
    [("nowhere/box.json", "there is no folder"), ("box.yaml", "the suffix must be .json or .toml")],
)
def test_calibrate_refuses_before_measuring(
    output: str,
    message: str,
    asked: list[dict[str, object]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("calibrate", "--output", str(tmp_path / output)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert asked == []


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--jsn") == 2
    assert "--json" in capsys.readouterr().err


def test_models_needs_no_heavy_import() -> None:
    script = (
        "import sys, runpy\n"
        "sys.argv = ['coxmoe', 'models', '--json']\n"
        "try: runpy.run_module('coxcompile', run_name='__main__')\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'matplotlib', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)[0]["name"] == "mixtral-8x7b"


def test_the_package_gives_its_names_lazily() -> None:
    script = (
        "import sys, coxcompile\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'explain' in dir(coxcompile)\n"
        "assert all(callable(getattr(coxcompile, name)) for name in coxcompile.__all__)\n"
        "try: coxcompile.explian\n"
        "except AttributeError as error: assert 'explian' in str(error)\n"
        "else: raise AssertionError\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_pyproject_installs_the_command_and_every_package() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert config["project"]["scripts"] == {"coxmoe": "coxcompile.cli:main"}
    folders = {path.parent for path in (ROOT / "coxcompile").rglob("__init__.py")}
    expected = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert expected <= set(config["tool"]["setuptools"]["packages"])
