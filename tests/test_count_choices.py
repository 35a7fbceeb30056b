"""The option count_choices: what compiled graphs count is what eager routers choose."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from coxcompile import ChoiceCounts
from coxcompile.planner.counting_model import CountingModel
from coxcompile.runtime.kernels.toolchain import Obstacle
from tests.models import FAMILIES, build, build_dense


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.fixture
def _without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewritten graphs run operator by operator, which compiles in no time."""
    obstacle = Obstacle("this test compiles nothing", "None is needed")
    module = importlib.import_module("coxcompile.passes.lower")
    monkeypatch.setattr(module, "inductor_obstacle", lambda: obstacle)


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def eager_choices(model: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """While entered, counts the expert ids that each layer's experts are called with."""
    counted: dict[str, torch.Tensor] = {}

    def counter(path: str, experts: int):  # noqa: ANN202
        counted[path] = torch.zeros(experts, dtype=torch.int64)

        def count(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            counted[path] += torch.bincount(arguments[1].flatten(), minlength=experts)

        return count

    handles = [
        module.register_forward_pre_hook(counter(path, module.down_proj.shape[0]))
        for path, module in model.named_modules()
        if path.endswith(".experts")
    ]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


def chosen_in_eager(model: torch.nn.Module, *batches: torch.Tensor) -> dict[str, list[int]]:
    with torch.no_grad(), eager_choices(model) as counted:
        for ids in batches:
            model(input_ids=ids, use_cache=False)
    return {path: counts.tolist() for path, counts in counted.items()}


def chosen_in_compiled(
    model: torch.nn.Module, *batches: torch.Tensor, dynamic: bool | None = None, **options: object
) -> dict[str, list[int]]:
    counts = ChoiceCounts()
    compiled = torch.compile(
        model,
        backend="coxmoe",
        fullgraph=True,
        dynamic=dynamic,
        options={"count_choices": counts, **options},
    )
    with torch.no_grad():
        for ids in batches:
            compiled(input_ids=ids, use_cache=False)
    return dict(zip(counts.layers, counts.to_numpy().tolist(), strict=True))


def test_float32_counts_are_those_of_eager_over_several_shapes() -> None:
    model = build("qwen3_moe", dtype=torch.float32)
    batches = [random_ids(2, 12), random_ids(3, 7, seed=1), random_ids(2, 12, seed=2)]
    counted = chosen_in_compiled(model, *batches, dynamic=True)
    assert counted == chosen_in_eager(model, *batches)
    assert list(counted) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]


def test_bfloat16_with_a_dense_first_layer() -> None:
    """Rounding flips a near-tie now and then, so counts are close, not equal."""
    model = build("glm4_moe", dtype=torch.bfloat16)
    batches = [random_ids(4, 24)]
    counted, expected = chosen_in_compiled(model, *batches), chosen_in_eager(model, *batches)
    assert list(counted) == ["model.layers.1.mlp.experts"]
    for path, counts in counted.items():
        assert sum(counts) == sum(expected[path]) == 4 * 24 * 2
        assert np.abs(np.subtract(counts, expected[path])).sum() <= 0.05 * sum(counts)


def test_packed_linears_do_not_freeze_the_counters() -> None:
    model = build("mixtral", dtype=torch.float32, layers=1)
    batches = [random_ids(2, 12, seed=seed) for seed in range(3)]
    counted = chosen_in_compiled(model, *batches, pack_linears=True, packed_weight_budget=1.0)
    assert counted == chosen_in_eager(model, *batches)


@pytest.mark.usefixtures("_without_inductor")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_counts_operator_by_operator(family: str) -> None:
    model = build(family, dtype=torch.float32)
    batches = [random_ids(2, 5)]
    counted = chosen_in_compiled(model, *batches)
    assert len(counted) == FAMILIES[family].expected_moe_layers()
    assert counted == chosen_in_eager(model, *batches)


@pytest.mark.usefixtures("_without_inductor")
def test_inference_mode_and_no_grad_count_together() -> None:
    model = build("mixtral", dtype=torch.float32)
    counts = ChoiceCounts()
    compiled = torch.compile(model, backend="coxmoe", options={"count_choices": counts})
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            compiled(input_ids=random_ids(2, 5), use_cache=False)
    assert counts.to_numpy().sum(axis=1).tolist() == [3 * 2 * 5 * 2] * 2


@pytest.mark.usefixtures("_without_inductor")
def test_counters_are_separate_and_start_again() -> None:
    model = build("mixtral", dtype=torch.float32)
    first, second = ChoiceCounts(), ChoiceCounts()
    for counts in (first, second):
        compiled = torch.compile(model, backend="coxmoe", options={"count_choices": counts})
        with torch.no_grad():
            compiled(input_ids=random_ids(2, 5), use_cache=False)
    assert (first.to_numpy() == second.to_numpy()).all()
    second.reset()
    assert not second.to_numpy().any()
    assert first.to_numpy().any()
    with torch.no_grad():
        compiled(input_ids=random_ids(2, 5), use_cache=False)
    assert (first.to_numpy() == second.to_numpy()).all()


@pytest.mark.usefixtures("_without_inductor")
def test_the_pass_adds_one_node_a_block_and_only_on_request(tmp_path: Path) -> None:
    graphs = {}
    model = build("mixtral", dtype=torch.float32)
    for counts in (None, ChoiceCounts()):
        torch._dynamo.reset()
        directory = tmp_path / str(counts is not None)
        options = {"dump": directory, "count_choices": counts}
        compiled = torch.compile(model, backend="coxmoe", options=options)
        with torch.no_grad():
            compiled(input_ids=random_ids(2, 5), use_cache=False)
        before, after = (
            (directory / "graph_0" / name).read_text()
            for name in ("4_stream_linears.txt", "5_count_choices.txt")
        )
        graphs[counts is not None] = before, after
    assert graphs[False][0] == graphs[False][1] == graphs[True][0]
    added = set(graphs[True][1].splitlines()) - set(graphs[True][0].splitlines())
    assert sum("coxmoe.count_choices_" in line for line in added) == 2
    assert sum(line.startswith("choice_counts_") for line in added) == 2
    assert len(added) == 4


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_op_counts_and_keeps_the_rules_of_custom_ops(dtype: torch.dtype) -> None:
    counts = torch.tensor([5, 0, 1, 0])
    expert_ids = torch.tensor([[0, 2], [2, 3], [0, 2]], dtype=dtype)
    torch.ops.coxmoe.count_choices_(counts, expert_ids)
    assert counts.tolist() == [7, 0, 4, 1]
    torch.ops.coxmoe.count_choices_(counts, expert_ids.t())
    assert counts.tolist() == [9, 0, 7, 2]
    torch.library.opcheck(torch.ops.coxmoe.count_choices_.default, (counts, expert_ids))


@pytest.mark.parametrize("wrong", [-1, 4])
def test_the_op_refuses_ids_that_are_no_expert(wrong: int) -> None:
    counts = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(IndexError, match=rf"holds {wrong}, but there are 4 experts"):
        torch.ops.coxmoe.count_choices_(counts, torch.tensor([[0, wrong]]))
    assert not counts.any()


def test_counters_of_one_model_refuse_another() -> None:
    counts = ChoiceCounts()
    counter = counts.counter("layers.0", 8, torch.device("cpu"))
    assert counts.counter("layers.0", 8, torch.device("cpu")) is counter
    with pytest.raises(ValueError, match=r"layers\.0 has 4 experts.*of its own"):
        counts.counter("layers.0", 4, torch.device("cpu"))
    counts.counter("layers.1", 4, torch.device("cpu"))
    with pytest.raises(ValueError, match="same number of experts"):
        counts.to_numpy()
    with pytest.raises(ValueError, match="no layers"):
        ChoiceCounts().to_numpy()


@pytest.mark.usefixtures("_without_inductor")
@pytest.mark.parametrize("model", ["dense", pytest.param("eager experts", marks=pytest.mark.slow)])
def test_a_model_that_cannot_be_counted_is_refused_with_the_remedy(model: str) -> None:
    built = (
        build_dense()
        if model == "dense"
        else build("mixtral", experts_implementation="eager", layers=1)
    )
    with pytest.raises(ValueError, match=r"no MoE block was found.*explain.*grouped_mm"):
        CountingModel(built).count(random_ids(2, 5))


@pytest.mark.usefixtures("_without_inductor")
def test_a_block_left_alone_is_an_error_not_a_smaller_map(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("coxcompile.passes.find_moe")
    original, calls = module._checked_block, []

    def second_block_does_not_match(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise module.NoMatch("made not to match")
        return original(*arguments)

    monkeypatch.setattr(module, "_checked_block", second_block_does_not_match)
    with pytest.raises(
        ValueError, match=r"1 MoE block.*not counted.*layers\.\d.*made not to match"
    ):
        CountingModel(build("mixtral", dtype=torch.float32)).count(random_ids(2, 5))


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training mode; call model.eval\(\)"):
        CountingModel(build("mixtral").train())


def test_importing_stratify_stays_light() -> None:
    program = (
        "import sys; from coxcompile import ActivationMap, ChoiceCounts, stratify;"
        "assert not {'sklearn', 'matplotlib', 'rich', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
