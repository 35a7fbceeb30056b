"""A small Qwen3-MoE with random weights whose routers prefer some experts, as trained ones do."""

from typing import Any

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

LAYERS, EXPERTS, TOP_K, HIDDEN, EXPERT_DIM, HEAD_DIM, KV_HEADS = 16, 16, 4, 64, 768, 32, 4
VOCABULARY = 256

POPULARITY = 0.12
"""How far the logit of the most popular expert is above the mean one, in standard deviations of
what a token adds. The hottest quarter of the experts then gets about half of the choices."""


def skewed_moe(seed: int = 0) -> Any:
    """The model, bfloat16. An expert is as large beside a token's hidden state as in Qwen3-30B-A3B.

    All embeddings share a direction, and each router adds what it prefers along that direction.
    """
    config: Any = Qwen3MoeConfig(  # type: ignore[call-arg]
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=EXPERT_DIM,
        intermediate_size=EXPERT_DIM,
        norm_topk_prob=True,
        max_position_embeddings=512,
        pad_token_id=0,
        dtype=torch.bfloat16,
    )
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model: Any = Qwen3MoeForCausalLM(config).eval()
    model.to(torch.bfloat16)
    shared = torch.randn(HIDDEN, generator=generator)
    with torch.no_grad():
        embeddings = torch.randn(VOCABULARY, HIDDEN, generator=generator) + shared
        model.model.embed_tokens.weight.copy_(embeddings)
        for layer in model.model.layers:
            gate = layer.mlp.gate.weight
            preferences = POPULARITY * torch.randn(len(gate), 1, generator=generator)
            noise = torch.randn(gate.shape, generator=generator)
            gate.copy_((noise + preferences * shared) / HIDDEN**0.5)
    return model
