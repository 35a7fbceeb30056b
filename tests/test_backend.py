"""torch.compile(model, backend="coxmoe") as a user meets it."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import coxcompile
from tests.models import build, build_dense
from tests.numerics import median_token_error, relative_error

IDS = torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


def test_found_by_its_name_without_importing_us() -> None:
    program = (
        "import torch; assert 'coxmoe' in torch._dynamo.list_backends(None);"
        "f = torch.compile(lambda x: x.sin() + 1, backend='coxmoe', mode='reduce-overhead');"
        "x = torch.randn(8); torch.testing.assert_close(f(x), x.sin() + 1)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("dynamic", [True, False, None])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_dynamic_shapes(family: str, dynamic: bool | None) -> None:
    model = build(family, dtype=torch.float32)
    compiled = torch.compile(model, backend="coxmoe", dynamic=dynamic, fullgraph=True)
    with torch.no_grad():
        for tokens in (12, 7, 9):
            ids = IDS[:, :tokens]
            assert relative_error(logits(compiled, ids), logits(model, ids)) < 1e-5


def test_inference_mode() -> None:
    model = build("qwen3_moe", dtype=torch.float32)
    compiled = torch.compile(model, backend="coxmoe", fullgraph=True)
    with torch.inference_mode():
        assert relative_error(logits(compiled), logits(model)) < 1e-5


def test_training_is_refused_with_the_remedy() -> None:
    model = build("mixtral", dtype=torch.float32)
    compiled = torch.compile(model, backend="coxmoe")
    with pytest.raises(Exception, match=r"compiles for inference.*no_grad.*training.*eager"):
        logits(compiled)


def test_training_falls_back_on_request() -> None:
    model = build("mixtral", dtype=torch.float32)
    expected = torch.autograd.grad(logits(model).sum(), model.lm_head.weight)[0]
    compiled = torch.compile(model, backend="coxmoe", options={"training": "eager"})
    with pytest.warns(UserWarning, match="runs this graph uncompiled"):
        loss = logits(compiled).sum()
    gradient = torch.autograd.grad(loss, model.lm_head.weight)[0]
    assert relative_error(gradient, expected) < 1e-5


def test_wrong_option_is_named() -> None:
    compiled = torch.compile(torch.nn.Linear(4, 4), backend="coxmoe", options={"trainin": "eager"})
    with torch.no_grad(), pytest.raises(Exception, match=r"trainin.*training"):
        compiled(torch.randn(2, 4))


@pytest.mark.parametrize("pack_linears", [True, False])
def test_new_weights_take_effect(pack_linears: bool) -> None:
    model = build("mixtral", dtype=torch.bfloat16)
    compiled = torch.compile(
        model,
        backend="coxmoe",
        options={"pack_linears": pack_linears, "packed_weight_budget": 1.0},
    )
    with torch.no_grad():
        before = logits(compiled)
        changed = {name: value * 1.25 for name, value in model.state_dict().items()}
        model.load_state_dict(changed)
        assert median_token_error(before, logits(model)) > 0.05
        assert median_token_error(logits(compiled), logits(model)) < 0.02


def test_one_graph_serves_two_modules_of_one_shape() -> None:
    """Dynamo runs one graph for both; packed weights of the first must not leak into the second."""
    models = [build("mixtral", dtype=torch.bfloat16), build("mixtral", dtype=torch.bfloat16)]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(1.25)

        def run(model: torch.nn.Module) -> torch.Tensor:
            return logits(model)

        options = {"pack_linears": True, "packed_weight_budget": 1.0}
        compiled = torch.compile(run, backend="coxmoe", options=options)
        for model in (*models, *models):
            assert median_token_error(compiled(model), logits(model)) < 0.02


def test_static_cache_is_updated_in_place_and_not_copied(tmp_path: Path) -> None:
    from torch._inductor.utils import run_and_get_code
    from transformers import StaticCache

    model = build("mixtral", dtype=torch.float32)
    caches = []
    for _ in range(2):
        cache = StaticCache(config=model.config, max_cache_len=32)
        cache.early_initialization(2, 2, 16, torch.float32, torch.device("cpu"))
        caches.append(cache)
    compiled = torch.compile(model, backend="coxmoe", fullgraph=True)
    with torch.no_grad():
        for step, ids in enumerate([IDS, IDS[:, :1], IDS[:, 1:2]]):
            expected = model(input_ids=ids, past_key_values=caches[0]).logits
            output, code = run_and_get_code(compiled, input_ids=ids, past_key_values=caches[1])
            assert relative_error(output.logits, expected) < 1e-5, step
            for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
                assert relative_error(ours.keys, theirs.keys) < 1e-5
                assert int(ours.cumulative_length) == int(theirs.cumulative_length)
            for source in code:
                allocated = [
                    line for line in source.splitlines() if "empty_strided_cpu((2, 2, 32" in line
                ]
                assert not allocated, "the cache is copied"


def test_model_without_experts_compiles_and_explains_so() -> None:
    model = build_dense()
    with torch.no_grad():
        explanation = coxcompile.explain(model, input_ids=IDS, use_cache=False)
        assert str(explanation) == "no MoE block found"
        compiled = torch.compile(model, backend="coxmoe", fullgraph=True)
        assert relative_error(logits(compiled), logits(model)) < 1e-2


def test_dump_writes_the_graph_after_each_pass(tmp_path: Path) -> None:
    model = build("mixtral", dtype=torch.float32)
    compiled = torch.compile(model, backend="coxmoe", options={"dump": tmp_path})
    with torch.no_grad():
        logits(compiled)
    written = sorted(path.name for path in (tmp_path / "graph_0").iterdir())
    assert written[:3] == ["0_normalize.txt", "1_find_moe.txt", "2_coalesce.txt"]
    assert {
        "3_group_query_heads.txt",
        "4_stream_linears.txt",
        "5_count_choices.txt",
        "6_use_ipex_experts.txt",
        "7_spread_experts.txt",
    } <= set(written)
    assert "blocks.txt" in written
    coalesced = (tmp_path / "graph_0" / "2_coalesce.txt").read_text()
    assert coalesced.count("coxmoe.coalesced_experts") == 2
    assert "grouped_mm" not in coalesced
    assert "# model.layers.0.mlp.experts.down_proj" in coalesced


def test_explain_runs_nothing_and_describes_blocks() -> None:
    model = build("gpt_oss", dtype=torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    explanation = coxcompile.explain(model, input_ids=IDS, use_cache=False)
    block = explanation.blocks[0]
    assert block.path == "model.layers.0.mlp.experts"
    assert (block.activation, block.gate_layout, block.transposed) == (
        "swigluoai",
        "interleaved",
        True,
    )
    assert block.alpha == pytest.approx(1.702)
    assert block.limit == pytest.approx(model.model.layers[0].mlp.experts.limit)
    assert list(explanation.graphs) == [
        "normalize",
        "find_moe",
        "coalesce",
        "group_query_heads",
        "stream_linears",
        "count_choices",
        "use_ipex_experts",
        "spread_experts",
    ]
    assert "2 MoE block(s)" in str(explanation)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_graph_break_is_explained() -> None:
    model = build("mixtral", dtype=torch.float32, experts_implementation="eager")
    explanation = coxcompile.explain(model, input_ids=IDS, use_cache=False)
    assert not explanation.blocks
    assert "does not capture as one graph" in explanation.skipped[0].reason
