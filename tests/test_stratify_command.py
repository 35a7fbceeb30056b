"""``coxmoe stratify`` on the small trained model of examples/: a map that ``coxmoe plan`` takes."""

import json
from pathlib import Path

import pytest

from coxcompile.cli import main
from coxcompile.commands.stratify import InputsError, read_inputs
from coxcompile.planner.activation_map import ActivationMap

TINY = Path(__file__).parents[1] / "examples" / "tiny_moe"


def test_text_becomes_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output, picture = tmp_path / "data.txt", tmp_path / "map.safetensors", tmp_path / "m.png"
    # Two lengths, so that two graphs serve all inputs.
    lines = [f"def function_{number:04}(argument): return {number}" for number in range(40)]
    data.write_text("\n".join(lines + ["<html><body>page</body></html>"] * 20))
    with pytest.raises(SystemExit) as stopped:
        main(
            f"stratify --model {TINY} --data {data} --output {output} --fraction 0.1 "
            f"--heat-map {picture}".split()
        )
    assert not stopped.value.code
    saved = ActivationMap.load(output)
    assert saved.counts.shape == (4, 32)
    assert (saved.counts.sum(axis=1) == 4 * saved.tokens).all()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "tokens of 60 inputs probed" in capsys.readouterr().out


def test_json_lines_give_ids_or_text(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    records = [{"input_ids": [1, 2, 3]}, {"text": "ab"}]
    data.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    assert list(read_inputs(data, None, 256)) == [[1, 2, 3], [97, 98]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"data\.jsonl:1: not a JSON object"),
        ("[1, 2]", r":1: not a JSON object"),
        ('{"ids": [1]}', r":1: has neither input_ids nor text"),
        ('{"input_ids": [300]}', r":1: token ids must lie in \[0, 256\)"),
    ],
)
def test_lines_that_cannot_be_read_are_named(line: str, message: str, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(line)
    with pytest.raises(InputsError, match=message):
        list(read_inputs(data, None, 256))
