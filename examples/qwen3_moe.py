"""A Qwen3-MoE with Qwen3-30B-A3B's layer dimensions and random weights; its float32 reference."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
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
    """The same model with its weights mapped from a safetensors file instead of held in memory.

    The file holds the weights as the model stores them. ``save_pretrained`` would write each expert
    by itself, as the hub has it, and loading would stack them in memory again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "model.safetensors"
    save_file(model.state_dict(), file)
    with torch.device("meta"):
        mapped: PreTrainedModel = AutoModelForCausalLM.from_config(
            model.config, dtype=torch.bfloat16
        )
    buffers = dict(model.named_buffers())
    mapped.load_state_dict(load_file(file), assign=True)
    file.unlink()  # the mapping holds it until the process ends
    for name, buffer in buffers.items():
        parent, _, last = name.rpartition(".")
        mapped.get_submodule(parent).register_buffer(last, buffer, persistent=False)
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
