"""benchmarks/paper.py: every prediction is there, labelled, and explained where it is outside."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

import paper
from paper_figures import draw
from paper_machines import slowed
from paper_numbers import LABEL, RESIDENT_LIMITS, SPEEDUPS, STEPS, SYSTEM_I, SYSTEMS
from paper_outcomes import Outcome, StageOutcome
from paper_reasons import comparison, why
from paper_report import Report, reasons
from paper_routing import placed_at_random, skewed_probabilities
from paper_speedups import SETTINGS, predict_cell
from paper_steps import predict_steps
from paper_tables import sheets
from rich.console import Console

from coxcompile.planner.expert_costs import expert_costs
from coxcompile.planner.models import model_named
from coxcompile.systems import system_named

CELLS = 4


@pytest.fixture(scope="module")
def report() -> Report:
    return paper.make_report(CELLS, Console(quiet=True))


@pytest.fixture(scope="module")
def written(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page, the pictures and the JSON that the command writes of ``report``."""
    folder = tmp_path_factory.mktemp("paper")
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "make_report", lambda cells, console: asked.append(cells) or report)
        json_path = str(folder / "paper.json")
        paper.main(["--cells", "7", "--json", json_path, "--output", str(folder / "page")])
    assert asked == [7]
    return folder


@pytest.fixture(scope="module")
def values(written: Path) -> dict:
    return json.loads((written / "paper.json").read_text())


def test_all_36_settings_of_figure_7() -> None:
    assert len(set(SETTINGS)) == 36
    assert {setting.system for setting in SETTINGS} == set(SYSTEMS.values())
    assert len({(s.input_tokens, s.output_tokens) for s in SETTINGS}) == 4


def test_json_has_every_figure(values: dict) -> None:
    assert list(values) == [
        *("label", "figure_2", "figure_3a", "figure_7", "figure_7_sensitivity", "figure_8"),
        *("figure_8_sensitivity", "table_3"),
    ]
    assert values["label"] == LABEL == "predicted, not measured"
    assert len(values["figure_7"]) == CELLS
    for cell in values["figure_7"]:
        assert [speedup["baseline"] for speedup in cell["speedups"]] == list(SPEEDUPS)
    assert {(row["stage"], row["device"]) for row in values["figure_3a"]} == {
        (stage, device) for stage in ("prefill", "decode") for device in ("gpu", "cpu")
    }
    assert [row["micro_batch"] for row in values["figure_2"]] == [256, 128, 64, 32] * 3
    assert {row["model"] for row in values["figure_8"]} == set(RESIDENT_LIMITS)


def test_ratios_are_of_the_outcomes_beside_them(values: dict) -> None:
    for cell in values["figure_7"]:
        for speedup in cell["speedups"]:
            theirs = speedup["outcome"]["tokens_per_second"]
            assert speedup["ratio"] == pytest.approx(cell["coxmoe"]["tokens_per_second"] / theirs)
            assert speedup["ratio_without_overlap"] >= speedup["ratio"] * (1 - 1e-9)


def test_each_ratio_outside_the_range_and_no_other_has_its_sentence(values: dict) -> None:
    outside = 0
    for cell in values["figure_7"]:
        for speedup in cell["speedups"]:
            low, high = speedup["paper"]
            inside = low <= speedup["ratio"] <= high
            assert (speedup.get("why") is None) == inside
            if not inside:
                outside += 1
                side = "below" if speedup["ratio"] < low else "above"
                assert f"{speedup['ratio']:.2f}x, {side} the paper's" in speedup["why"]
                assert re.search(
                    r"(is the busiest in both|is bound by|waits in turns)", speedup["why"]
                )
    assert outside > 0


def test_table_3_is_in_order_and_its_ratios_multiply(values: dict) -> None:
    steps = values["table_3"]
    names = list(dict.fromkeys(step["name"] for step in steps))
    assert names[:-1] == [step.name for step in STEPS]
    assert [step.get("paper_ratio") for step in steps[:-1]] == [None, 1.51, 1.51, 1.26, 1.26, 1.05]
    speed = {step["outcome"]["policy"]: step["outcome"]["tokens_per_second"] for step in steps}
    for step in steps[1:]:
        expected = step["outcome"]["tokens_per_second"] / speed[step["over"]]
        assert step["ratio"] == pytest.approx(expected)
        assert step["why"]
    _, a, b, over_a, over_b, last, together = (step.get("ratio") for step in steps)
    assert a * over_a * last == pytest.approx(together)
    assert b * over_b * last == pytest.approx(together)


def test_the_page_and_every_picture_say_predicted(written: Path) -> None:
    folder = written / "page"
    page = (folder / "README.md").read_text()
    pictures = re.findall(r"!\[(.*?)\]\((.*?)\)", page)
    assert {name for _, name in pictures} == {path.name for path in folder.glob("*.png")}
    assert len(pictures) == 5
    for text, name in pictures:
        assert LABEL in text
        data = (folder / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < 100_000
    for heading in re.findall(r"^## ((?:Fig|Table).*)$", page, re.MULTILINE):
        assert LABEL in heading


def test_the_page_has_the_reasons(written: Path, values: dict) -> None:
    page = (written / "page" / "README.md").read_text()
    sentences = [s["why"] for c in values["figure_7"] for s in c["speedups"] if s.get("why")]
    for sentence in sentences:
        assert sentence in page


def test_equal_runs_predict_and_draw_the_same(
    report: Report, written: Path, tmp_path: Path
) -> None:
    assert predict_cell(report.figure_7[-1].setting) == report.figure_7[-1]
    assert tuple(predict_steps()) == report.table_3
    for path in draw(report, tmp_path).values():
        assert path.read_bytes() == (written / "page" / path.name).read_bytes(), path.name


def test_tables_are_labelled_and_complete(report: Report) -> None:
    for sheet in sheets(report).values():
        assert LABEL in sheet.title
        assert sheet.rows
        assert all(len(row) == len(sheet.columns) for row in sheet.rows)
    outside = sum(s.why is not None for cell in report.figure_7 for s in cell.speedups)
    assert len(reasons(report)) == outside


def _stage(busiest: str, seconds: float, busiest_seconds: float) -> StageOutcome:
    return StageOutcome(
        seconds=seconds,
        busiest=busiest,
        busiest_seconds=busiest_seconds,
        busy={busiest: busiest_seconds / seconds},
        chief_work="experts",
        chief_share=0.9,
        expert_rows=8.0,
        hit_ratio=0.5,
        attention="cpu",
        resident=4.0,
        migrating=0.0,
        cpu=4.0,
        micro_batch=4,
        block=8,
        cache_in_vram=0.0,
        vram_bytes=1e9,
        expert_vram_bytes=5e8,
    )


def test_reasons_follow_the_predictions() -> None:
    ours = Outcome("coxmoe", 20.0, _stage("gpu", 0.1, 0.1), _stage("cpu", 10.0, 9.0))
    link = Outcome("other", 10.0, _stage("gpu", 0.1, 0.1), _stage("host_to_device", 20.0, 20.0))
    text = why(2.0, (3.0, 4.0), ours, link)
    assert text.startswith("2.00x, below the paper's 3.0-4.0x. Decode (100% of other's time")
    assert "coxmoe is bound by the CPU (busy 90% of the time, 90% of that with experts)" in text
    assert "other is bound by the link to the GPU (busy 100% of the time" in text
    assert "Prefill" not in text
    slower = Outcome("other", 10.0, _stage("gpu", 9.0, 9.0), _stage("cpu", 20.0, 9.6))
    text = comparison(ours, slower)
    assert "nearly the same work in both (9 s and 9.6 s), busy 90% of coxmoe's time and 48%" in text
    assert "Prefill (31% of other's time" in text


@given(hottest=st.integers(1, 127), share=st.floats(0.05, 0.95))
def test_the_hottest_take_their_share(hottest: int, share: float) -> None:
    model = model_named("qwen3-30b-a3b")
    hit_ratio = hottest / model.experts + share * (1 - hottest / model.experts)
    try:
        probabilities = skewed_probabilities(model, hottest, hit_ratio)
    except ValueError as error:
        assert "of all tokens would choose" in str(error)  # noqa: PT017
        assert hottest < 2 * model.top_k or hit_ratio > 0.9
        return
    assert probabilities.shape == (model.moe_layers, model.experts)
    assert (np.diff(probabilities[0]) <= 0).all()
    assert probabilities[0].sum() == pytest.approx(model.top_k)
    assert probabilities[0, :hottest].sum() / model.top_k == pytest.approx(hit_ratio, abs=1e-6)


def test_a_share_below_the_even_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hit_ratio is 0\.3, but must lie between 64 / 128"):
        skewed_probabilities(model_named("qwen3-30b-a3b"), 64, 0.3)


def test_random_placement_costs_what_a_mean_over_orders_does() -> None:
    model, hardware = model_named("mixtral-8x7b"), system_named(SYSTEM_I)
    routing = skewed_probabilities(model, 2, 0.5)
    costs = expert_costs(model, hardware, 64.0, routing)
    random = placed_at_random(costs)
    each = np.diff(costs.cpu_seconds[0])
    generator = np.random.default_rng(0)
    orders = [np.cumsum(generator.permutation(each)) for _ in range(4000)]
    np.testing.assert_allclose(random.cpu_seconds[0, 1:], np.mean(orders, axis=0), rtol=0.03)
    for name in ("cpu_seconds", "gpu_seconds", "fetched_experts", "choices", "token_misses"):
        before, after = getattr(costs, name), getattr(random, name)
        np.testing.assert_allclose(after[:, [0, -1]], before[:, [0, -1]])


@pytest.mark.parametrize("what", ["link", "gpu", "cpu", "host"])
def test_slowed_divides_one_figure(what: str) -> None:
    system = system_named(SYSTEM_I)
    changed = slowed(system, what, 4.0)
    assert changed != system
    assert slowed(system, "") == system
    if what == "link":
        assert system.host_to_device is not None
        assert changed.host_to_device is not None
        ratio = system.host_to_device.bytes_per_second / changed.host_to_device.bytes_per_second
        assert ratio == 4


def test_slowed_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="what is 'disk', but must be link"):
        slowed(system_named(SYSTEM_I), "disk")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "0"], r"--cells: '0' is not a number from 1 to 36; use e\.g\. 36"),
        (["--cells", "37"], r"--cells: '37' is not a number from 1 to 36"),
        (["--cells", "x"], r"--cells: 'x' is not a number"),
        (["--json", "missing/paper.json"], r"--json: 'missing/paper\.json' is not a \.json file"),
        (["--json", "paper.toml"], r"--json: 'paper\.toml' is not a \.json file"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        paper.main(arguments)
    assert re.search(message, capsys.readouterr().err)
