"""benchmarks/triton_static.py: what it prints, writes and refuses, from a table of few rows."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import triton_static
import triton_static_report

from coxcompile.gpu_analysis.targets import TARGETS
from coxcompile.runtime.kernels.gpu.configurations import (
    ExpertConfiguration,
    ProductConfiguration,
    Row,
    load_rows,
    save_rows,
)

FIELDS = {
    *("kernel", "config", "target", "registers", "spill_bytes", "shared_bytes", "occupancy"),
    *("mma", "mma_flops_ratio"),
}


def row(target: str, weights: str, tokens_per_expert: int, stages: int) -> Row:
    product = ProductConfiguration(block_outputs=64, block_inputs=64, warps=4, stages=stages)
    configuration = ExpertConfiguration(block_tokens=16, gate_up=product, down=product)
    return Row(
        device=target,
        weights=weights,
        tokens_per_expert=tokens_per_expert,
        configuration=configuration,
        source="static",
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "configurations.json"
    # The second is the same tiles as the first: they are reported once.
    rows = [row("sm_80", "bfloat16", 16, 3), row("sm_80", "bfloat16", 64, 3)]
    save_rows(path, [*rows, row("sm_80", "int8", 16, 2), row("sm_90", "bfloat16", 16, 3)])
    return path


def test_rows_and_tables(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, page = table.with_name("static.json"), table.with_name("static.md")
    triton_static.main(
        f"--targets sm_80 --table {table} --json {written} --markdown {page}".split()
    )
    rows = json.loads(written.read_text())
    assert all(set(row) == FIELDS for row in rows)
    assert [row["kernel"] for row in rows] == [
        *("project_gate_up", "project_down", "count_choices", "place_choices", "combine_choices"),
    ]
    for row in rows[:2]:
        assert row["config"] == "bfloat16 64x16x64 4 warps 3 stages"
        assert row["target"] == "sm_80"
        assert row["spill_bytes"] == 0
        assert row["mma"].endswith(" HMMA.16816.F32.BF16")
        assert row["mma_flops_ratio"] == 1
        assert 0 < row["occupancy"] <= 1
    assert {row["mma"] for row in rows[2:]} == {"none"}
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("not measurements") >= 3
    markdown = page.read_text()
    assert markdown.count("not measurements") == 2
    for layer in triton_static_report.LAYERS:
        assert markdown.count(f"| {layer.name} | 64 |") == 2
        assert markdown.count(f"| {layer.name} | 4096 |") == 2
    assert "| A100" not in markdown
    assert "A100" in markdown


def test_roofline_rows_are_the_bounds_of_the_table(table: Path) -> None:
    rows = triton_static_report.roofline_rows(TARGETS["sm_80"], "bfloat16", load_rows(table))
    assert [(row.layer.name, row.tokens) for row in rows] == [
        (layer.name, tokens) for layer in triton_static_report.LAYERS for tokens in (64, 4096)
    ]
    for found in rows:
        assert found.configuration.block_tokens == 16
        layer = found.layer
        choices = found.tokens * layer.top_k
        assert found.gate_up.flops == 4 * choices * layer.hidden * layer.intermediate
        assert found.down.flops == found.gate_up.flops / 2


def test_the_table_is_written_in_part(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other targets' and weights' rows stay; the order is that of targets."""
    new = row("sm_80", "bfloat16", 16, 5)
    asked: list[object] = []

    def generate(*arguments: object, progress: object) -> list[Row]:
        asked.append(arguments)
        return [new]

    monkeypatch.setattr(triton_static, "generate", generate)
    monkeypatch.setattr(triton_static, "report", lambda *arguments: ([], ""))
    triton_static.main(f"--write-table --targets sm_80 --weights bfloat16 --table {table}".split())
    assert asked == [([TARGETS["sm_80"]], ["bfloat16"], triton_static_report.LAYERS)]
    assert load_rows(table) == (
        new,
        row("sm_80", "int8", 16, 2),
        row("sm_90", "bfloat16", 16, 3),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "sm_80,sm_75"], r"--targets: no target 'sm_75'; use one or more of sm_80,"),
        (["--weights", "int3"], r"--weights: no type of weights 'int3'; use one or more of bfloat"),
        (["--json", "/nowhere/a.json"], r"--json: '/nowhere/a.json' is not in a folder that exist"),
    ],
)
def test_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        triton_static.main(arguments)
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
