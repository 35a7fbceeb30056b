"""Tiny Mixture-of-Experts models with random weights, one for each supported family.

    model = build("qwen3_moe", dtype=torch.float32)

They are transformers' own classes, so their graphs are those of the real models. The weights are
drawn so that everything a wrong rewrite could lose shows up in the logits: routers spread tokens
over the experts, biases are not zero, norms are not the identity, clamps clamp.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

SEED = 0

_COMMON: Mapping[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}

# Multiples of 8 and no more: transformers' grouped_mm takes rows of whole 16-byte units only.
_COMMON_ODD: Mapping[str, Any] = {"hidden_size": 72}

# Every head of DeepSeek's latent attention has keys of its own.
_LATENT_ATTENTION: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}


@dataclass(frozen=True)
class Family:
    """One family of models: its transformers classes and the dimensions of its tiny model."""

    model_class: type[PreTrainedModel]
    config_class: type[PreTrainedConfig]
    config: Mapping[str, Any]
    """What the tiny model's config has besides the dimensions common to all families."""
    odd_config: Mapping[str, Any] = field(default_factory=dict)
    """What it has instead in the variant whose sizes are no multiples of 16."""
    dense_layers: int = 0
    """How many of the layers, from the first, have an ordinary MLP in place of experts."""

    def expected_moe_layers(self, layers: int = 2) -> int:
        """How many of a model's ``layers`` decoder layers are MoE layers."""
        return max(layers - self.dense_layers, 0)


FAMILIES: dict[str, Family] = {
    "mixtral": Family(
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig,
        {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 96},
        {"num_local_experts": 5, "intermediate_size": 40},
    ),
    "qwen2_moe": Family(
        transformers.Qwen2MoeForCausalLM,
        transformers.Qwen2MoeConfig,
        {
            "num_experts": 12,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "intermediate_size": 96,
        },
        {"num_experts": 7, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 56},
    ),
    "qwen3_moe": Family(
        transformers.Qwen3MoeForCausalLM,
        transformers.Qwen3MoeConfig,
        {
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "moe_intermediate_size": 32,
            "intermediate_size": 96,
            "head_dim": 16,
        },
        {"num_experts": 11, "moe_intermediate_size": 24},
    ),
    "olmoe": Family(
        transformers.OlmoeForCausalLM,
        transformers.OlmoeConfig,
        {"num_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 32},
        {"num_experts": 9, "num_experts_per_tok": 3, "intermediate_size": 40},
    ),
    "deepseek_v2": Family(
        transformers.DeepseekV2ForCausalLM,
        transformers.DeepseekV2Config,
        {
            **_LATENT_ATTENTION,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.5,
            "n_shared_experts": 2,
            "moe_intermediate_size": 32,
            "intermediate_size": 96,
            "first_k_dense_replace": 0,
        },
        {"n_routed_experts": 9, "n_group": 3, "moe_intermediate_size": 40},
    ),
    "deepseek_v3": Family(
        transformers.DeepseekV3ForCausalLM,
        transformers.DeepseekV3Config,
        {
            **_LATENT_ATTENTION,
            "n_routed_experts": 16,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "n_shared_experts": 1,
            "moe_intermediate_size": 32,
            "intermediate_size": 96,
            "first_k_dense_replace": 0,
        },
        {"n_routed_experts": 15, "n_group": 3, "moe_intermediate_size": 40},
    ),
    "gpt_oss": Family(
        transformers.GptOssForCausalLM,
        transformers.GptOssConfig,
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
            "head_dim": 16,
            "sliding_window": 8,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 64,
            },
            # GPT-OSS has 7, which random weights never reach.
            "swiglu_limit": 1.25,
        },
        {"num_local_experts": 7, "num_experts_per_tok": 3, "intermediate_size": 40},
    ),
    "phimoe": Family(
        transformers.PhimoeForCausalLM,
        transformers.PhimoeConfig,
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
            "attention_bias": True,
            "lm_head_bias": True,
        },
        {"num_local_experts": 6, "intermediate_size": 40},
    ),
    "granitemoe": Family(
        transformers.GraniteMoeForCausalLM,
        transformers.GraniteMoeConfig,
        {
            "num_local_experts": 12,
            "num_experts_per_tok": 4,
            "intermediate_size": 32,
            "embedding_multiplier": 1.5,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.25,
            "logits_scaling": 6.0,
        },
        {"num_local_experts": 10, "num_experts_per_tok": 3, "intermediate_size": 40},
    ),
    "glm4_moe": Family(
        transformers.Glm4MoeForCausalLM,
        transformers.Glm4MoeConfig,
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "moe_intermediate_size": 32,
            "intermediate_size": 96,
            "head_dim": 16,
            "attention_bias": True,
            "use_qk_norm": True,
            "first_k_dense_replace": 1,
        },
        {"n_routed_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 40},
        dense_layers=1,
    ),
}
"""The families by the name transformers gives them (``model_type``)."""

_DENSE = Family(transformers.LlamaForCausalLM, transformers.LlamaConfig, {"intermediate_size": 96})


def build(
    family: str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    experts_implementation: str = "grouped_mm",
    layers: int = 2,
    odd: bool = False,
    **config_overrides: Any,
) -> PreTrainedModel:
    """Build the tiny model of a family, in eval mode.

    The weights depend on the sizes alone: the bfloat16 model has the float32 model's, rounded.

    Args:
        family: A key of ``FAMILIES``.
        dtype: That of the parameters.
        experts_implementation: transformers' way to run the experts: "grouped_mm", "batched_mm" or
            "eager".
        layers: Number of decoder layers.
        odd: Take sizes that are no multiples of 16, and odd numbers of experts where the router
            permits.
        **config_overrides: Fields of the family's config, over everything else.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; there are {', '.join(FAMILIES)}")
    description = FAMILIES[family]
    odd_config = {**_COMMON_ODD, **description.odd_config} if odd else {}
    return _build(
        description,
        {**odd_config, **config_overrides},
        dtype=dtype,
        layers=layers,
        experts_implementation=experts_implementation,
    )


def build_dense(
    *, dtype: torch.dtype = torch.bfloat16, layers: int = 2, **config_overrides: Any
) -> PreTrainedModel:
    """Build a tiny Llama, in eval mode: a model with no MoE layer."""
    return _build(_DENSE, config_overrides, dtype=dtype, layers=layers)


def _build(
    family: Family,
    config_overrides: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    layers: int,
    **implementation: str,
) -> PreTrainedModel:
    config = family.config_class(
        **{**_COMMON, **family.config, "num_hidden_layers": layers, **config_overrides}
    )
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = family.model_class._from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, **implementation
        )
    _draw_weights(model)
    torch.nn.Module.eval(model)
    return model


def _draw_weights(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            mean, deviation = _mean_and_deviation(module, name, parameter)
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(mean + deviation * drawn)
        correction_bias = module._buffers.get("e_score_correction_bias")
        if correction_bias is not None:
            # float32 in a bfloat16 model too, as from_pretrained leaves it.
            drawn = torch.randn(correction_bias.shape, generator=generator)
            module.e_score_correction_bias = 0.1 * drawn


def _mean_and_deviation(module: nn.Module, name: str, parameter: Tensor) -> tuple[float, float]:
    if isinstance(module, nn.Embedding):
        return 0, 1
    if name.endswith("bias") or name == "sinks":
        return 0, 0.3
    if parameter.dim() == 1:
        return 1, 0.2
    inputs = parameter.shape[-2 if getattr(module, "is_transposed", False) else -1]
    return 0, _router_gain(module) / math.sqrt(inputs)


def _router_gain(module: nn.Module) -> float:
    # A softmax's logits far apart, so that rounding seldom changes which experts are chosen; a
    # sigmoid's (the routers with a correction bias) not so far that it saturates.
    is_softmax_router = "router" in type(module).__name__.lower() and not hasattr(
        module, "e_score_correction_bias"
    )
    return 2 if is_softmax_router else 1
