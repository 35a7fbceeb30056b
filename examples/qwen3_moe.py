"""A Qwen3-MoE with Qwen3-30B-A3B's layer dimensions and random weights; its float32 reference."""

import gc
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

LAYER: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}


def build_model(layers: int) -> PreTrainedModel:
    """``layers`` layers of Qwen3-30B-A3B in bfloat16: 1.25 GB each, 1.24 GB for the vocabulary."""
    config = Qwen3MoeConfig(**LAYER, num_hidden_layers=layers, dtype=torch.bfloat16)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return Qwen3MoeForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)


def load_model(directory: Path) -> PreTrainedModel:
    """A local Hugging Face model in bfloat16; nothing is downloaded."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, local_files_only=True
    )
    return model.eval()


def map_weights(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """The same model with its weights mapped from safetensors files instead of held in memory."""
    model.save_pretrained(directory)
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    state: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        state |= load_file(file)
    mapped: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    mapped.load_state_dict(state, assign=True)
    del model
    gc.collect()
    return mapped.eval()


class Float32Layers:
    """While entered, ``model`` computes in float32, one layer's weights upcast at a time.

    A whole float32 copy would not fit beside the bfloat16 model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder = model.get_decoder()
        self._embedding = decoder.embed_tokens
        self._modules = [*decoder.layers, decoder.norm, model.get_output_embeddings()]
        self._handles: list[Any] = []
        self._narrow: dict[torch.nn.Parameter, torch.Tensor] = {}

    def __enter__(self) -> None:
        self._handles = [
            self._embedding.register_forward_hook(lambda *call: call[-1].float()),
            *(m.register_forward_pre_hook(self._upcast) for m in self._modules),
            *(m.register_forward_hook(self._restore) for m in self._modules),
        ]

    def __exit__(self, *_error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _upcast(self, module: torch.nn.Module, _inputs: object) -> None:
        for parameter in module.parameters():
            self._narrow[parameter] = parameter.data
            parameter.data = parameter.data.float()

    def _restore(self, module: torch.nn.Module, _inputs: object, _output: object) -> None:
        for parameter in module.parameters():
            parameter.data = self._narrow.pop(parameter)
