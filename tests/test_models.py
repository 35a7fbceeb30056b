"""Named models, and specs made from configs and from compiled graphs."""

from dataclasses import replace

import pytest
import torch
import transformers

from coxcompile import Explanation, explain
from coxcompile.naming import UnknownNameError
from coxcompile.planner.model_from_blocks import model_from_blocks
from coxcompile.planner.model_spec import ModelSpec, model_from_config
from coxcompile.planner.models import MODELS, model_named
from tests.models import build, build_dense

# Billions of parameters as the models' authors publish them, and the tolerance: the published
# counts of GLM 4.5 and Llama 4 have layers that we leave out (multi-token prediction, vision).
PUBLISHED = {
    "mixtral-8x7b": (46.7, 0.01),
    "mixtral-8x22b": (141, 0.01),
    "qwen3-30b-a3b": (30.5, 0.01),
    "qwen3-235b-a22b": (235, 0.01),
    "deepseek-v2-lite": (15.7, 0.01),
    "deepseek-v2": (236, 0.01),
    "deepseek-v3": (671, 0.01),
    "gpt-oss-20b": (20.9, 0.01),
    "gpt-oss-120b": (116.8, 0.01),
    "glm4.5": (355, 0.03),
    "llama4-scout": (109, 0.02),
    "llama4-maverick": (400, 0.02),
}
ATTENTION = {"query_heads": 4, "kv_heads": 2, "head_dim": 16, "vocabulary": 128}


def test_every_named_model_has_a_published_size() -> None:
    assert MODELS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_parameters(name: str) -> None:
    billions, tolerance = PUBLISHED[name]
    assert model_named(name).total_bytes / 2 / 1e9 == pytest.approx(billions, rel=tolerance)


# Classes whose defaults, with the fields given, are the real model's.
CONFIGS = {
    "mixtral-8x7b": transformers.MixtralConfig(),
    "qwen3-30b-a3b": transformers.Qwen3MoeConfig(num_hidden_layers=48, head_dim=128),
    "gpt-oss-120b": transformers.GptOssConfig(),
    "deepseek-v3": transformers.DeepseekV3Config(),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_config_that_transformers_has(name: str) -> None:
    expected = model_from_config(CONFIGS[name], name)
    named = MODELS[name]
    # A latent attention's head_dim and an FFN that no layer has are no sizes of weights.
    unused = {"dense_dim": named.dense_dim} if named.dense_layers == 0 else {}
    assert replace(expected, head_dim=named.head_dim, **unused) == named
    assert expected.total_bytes == named.total_bytes


def test_the_papers_dimensions() -> None:
    sizes = {
        name: (spec.layers, spec.experts, spec.top_k, spec.hidden, spec.expert_dim)
        for name, spec in MODELS.items()
    }
    assert sizes["mixtral-8x7b"] == (32, 8, 2, 4096, 14336)
    assert sizes["deepseek-v2-lite"] == (27, 64, 6, 2048, 1408)
    assert sizes["qwen3-30b-a3b"] == (48, 128, 8, 2048, 768)
    assert MODELS["deepseek-v2-lite"].dense_layers == 1
    assert MODELS["deepseek-v2-lite"].shared_dim == 2 * 1408


def test_latent_attention_caches_the_latent_only() -> None:
    assert MODELS["deepseek-v2-lite"].kv_bytes == (512 + 64) * 2


def test_an_unknown_name_says_which_there_are_and_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean mixtral-8x7b") as error:
        model_named("mixtral8x7b")
    assert all(name in str(error.value) for name in MODELS)
    assert model_named("Mixtral-8x7B") is MODELS["mixtral-8x7b"]


def test_a_name_near_none_has_no_suggestion() -> None:
    with pytest.raises(UnknownNameError) as error:
        model_named("#")
    assert "did you mean" not in str(error.value)


def explained(family: str, layers: int) -> tuple[Explanation, transformers.PreTrainedConfig]:
    model = build(family, layers=layers)
    return explain(model, input_ids=torch.randint(0, 128, (2, 8))), model.config


def test_blocks_and_config_give_what_the_config_gives() -> None:
    explanation, config = explained("glm4_moe", layers=3)
    spec = model_from_blocks(explanation, config, name="tiny")
    assert spec == replace(model_from_config(config, "tiny"), element_bytes=2)
    assert (spec.layers, spec.dense_layers) == (3, 1)


def test_blocks_give_the_dtype_that_runs() -> None:
    model = build("qwen3_moe", dtype=torch.float32)
    explanation = explain(model, input_ids=torch.randint(0, 128, (2, 8)))
    assert model_from_blocks(explanation, **ATTENTION).element_bytes == 4


def test_blocks_without_a_config() -> None:
    explanation, _ = explained("mixtral", layers=2)
    spec = model_from_blocks(explanation, name="tiny", layers=3, dense_dim=96, **ATTENTION)
    assert spec == ModelSpec(
        name="tiny",
        layers=3,
        dense_layers=1,
        dense_dim=96,
        hidden=64,
        experts=8,
        top_k=2,
        expert_dim=96,
        **ATTENTION,
    )


def test_blocks_refuse_what_they_cannot_describe() -> None:
    dense = explain(build_dense(), input_ids=torch.randint(0, 128, (2, 8)))
    with pytest.raises(ValueError, match="no MoE block"):
        model_from_blocks(dense, **ATTENTION)
    explanation, config = explained("mixtral", layers=2)
    with pytest.raises(ValueError, match="query_heads, kv_heads, head_dim missing"):
        model_from_blocks(explanation, vocabulary=128)
    with pytest.raises(ValueError, match="layers is 1, but the graph has 2"):
        model_from_blocks(explanation, layers=1, **ATTENTION)
    with pytest.raises(ValueError, match="given beside a config"):
        model_from_blocks(explanation, config, vocabulary=128)
    config.num_local_experts = 9
    with pytest.raises(ValueError, match="experts is 8 in the graph but 9 in the config"):
        model_from_blocks(explanation, config)
    first, second = explanation.blocks
    uneven = Explanation((first, replace(second, experts=4)))
    with pytest.raises(ValueError, match="MoE blocks differ"):
        model_from_blocks(uneven, **ATTENTION)
