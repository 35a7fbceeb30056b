"""``options={"cpu_kernels": "ipex"}`` on whole models: rewritten and right, or an error."""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from coxcompile import ChoiceCounts, OptionsError
from coxcompile.runtime.kernels import ipex
from tests.models import build
from tests.numerics import median_token_error, relative_error


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def model_of(family: str = "qwen3_moe", dtype: torch.dtype = torch.bfloat16, **kwargs: Any) -> Any:
    """A tiny model. Its experts are batched_mm: under PyTorch 2.8 grouped_mm breaks the graph."""
    model = build(family, dtype=dtype, **kwargs)
    model.set_experts_implementation("batched_mm")
    return model


def compiled_with_ipex(model: nn.Module, **options: Any) -> Any:
    chosen = {"accelerator": "none", "cpu_kernels": "ipex", **options}
    return torch.compile(model, backend="coxmoe", fullgraph=True, options=chosen)


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def token_ids(tokens: int = 24) -> torch.Tensor:
    return torch.randint(0, 100, (2, tokens), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3"])
@pytest.mark.parametrize("tokens", [1, 24])
def test_a_models_experts_all_run_in_the_operator(family: str, tokens: int, tmp_path: Path) -> None:
    model, ids = model_of(family), token_ids(tokens)
    expected = logits_of(copy.deepcopy(model).float(), ids)
    eager = median_token_error(logits_of(model, ids), expected)
    actual = logits_of(compiled_with_ipex(model, dump=tmp_path), ids)
    assert median_token_error(actual, expected) < max(1.5 * eager, 1e-2)
    (graph,) = tmp_path.rglob("*use_ipex_experts*")
    text = graph.read_text()
    assert text.count("coxmoe.ipex_experts.default(") == 2
    assert "coalesced_experts" not in text


def test_prefill_decode_and_other_modes_share_one_packed_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of()
    compiled = compiled_with_ipex(model)
    packed = []
    original = ipex._Packed
    monkeypatch.setattr(ipex, "_Packed", lambda *parts: packed.append(1) or original(*parts))
    for tokens in (24, 1, 5, 24):
        logits_of(compiled, token_ids(tokens))
    with torch.inference_mode():
        logits_of(compiled, token_ids(24))
    assert len(packed) == 2, "one a layer"


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_take_effect(assign: bool) -> None:
    model, other = model_of(), model_of()
    for parameter in other.parameters():
        if parameter.dim() == 3:
            parameter.mul_(-1)
    compiled, ids = compiled_with_ipex(model), token_ids()
    before = logits_of(compiled, ids)
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    after = logits_of(compiled, ids)
    assert median_token_error(after, logits_of(other, ids)) < 2e-2
    assert median_token_error(after, before) > 0.1


def test_choices_are_counted_all_the_same() -> None:
    model, ids, counts = model_of(), token_ids(), ChoiceCounts()
    logits_of(compiled_with_ipex(model, count_choices=counts), ids)
    assert counts.to_numpy().sum(axis=1).tolist() == [ids.numel() * 4] * 2


def test_auto_never_means_ipex(tmp_path: Path) -> None:
    compiled = compiled_with_ipex(model_of(), cpu_kernels="auto", dump=tmp_path)
    logits_of(compiled, token_ids())
    (graph,) = tmp_path.rglob("*use_ipex_experts*")
    assert "coalesced_experts" in graph.read_text()
    assert "ipex_experts.default" not in graph.read_text()


def test_the_extensions_package_is_not_imported() -> None:
    logits_of(compiled_with_ipex(model_of()), token_ids())
    assert "intel_extension_for_pytorch" not in sys.modules


def test_a_graph_without_experts_is_left_alone() -> None:
    model, inputs = nn.Linear(8, 8), torch.randn(3, 8)
    assert relative_error(compiled_with_ipex(model)(inputs), model(inputs)) < 1e-6


@pytest.mark.parametrize(
    ("family", "arguments", "reasons"),
    [
        ("qwen3_moe", {"dtype": torch.float32}, ["in bfloat16, and this model in float32"]),
        ("qwen3_moe", {"dtype": torch.float16}, ["in bfloat16, and this model in float16"]),
        ("qwen3_moe", {"odd": True}, ["multiples of 32, not 72 or 24"]),
        (
            "gpt_oss",
            {},
            [
                'and this model\'s is "swigluoai"',
                "these are interleaved",
                "these are transposed",
                "it adds no biases",
            ],
        ),
    ],
)
def test_what_the_operator_cannot_compute_is_an_error(
    family: str, arguments: dict[str, Any], reasons: list[str]
) -> None:
    model = model_of(family, **arguments)
    with pytest.raises(BackendCompilerFailed) as raised:
        logits_of(compiled_with_ipex(model), token_ids())
    error = raised.value.inner_exception
    assert isinstance(error, OptionsError)
    for reason in reasons:
        (problem,) = [problem for problem in error.problems if reason in problem]
        assert 'option "cpu_kernels": got "ipex"' in problem
        assert "(model.layers.0.mlp.experts and 1 more)" in problem
    assert len(error.problems) == len(reasons)
