"""The peers' kernels: how each is loaded, given its packed weights, and called.

`make bench-peers` installs them; benchmarks/peers.txt names their versions.
"""

import importlib
import importlib.util
from pathlib import Path

import torch
from experts_implementations import Experts
from experts_layers import Weights

UNQUANTIZED = 0
"""CPUQuantMethod.UNQUANT of vllm/_custom_ops.py."""

INSTALLING = "`make bench-peers` installs what benchmarks/peers.txt names"


class PeerMissingError(Exception):
    """A peer cannot run here; the message says why, and what to do where something can be done."""


def load_zentorch() -> None:
    """Importing it registers its operators; those that run eagerly are left as they are."""
    if importlib.util.find_spec("zentorch") is None:
        raise PeerMissingError(f"is not installed; {INSTALLING}")
    try:
        importlib.import_module("zentorch")
    except (ImportError, OSError) as error:
        raise _does_not_load(error) from error


def load_vllm_operators() -> None:
    """Loads the library of operators alone: vLLM itself asks for dozens of packages."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise PeerMissingError(f"is not installed; {INSTALLING}")
    # Its library for processors without has no fused_experts_cpu.
    if not torch.cpu._is_avx512_bf16_supported():
        raise PeerMissingError("needs a processor with AVX512-BF16")
    library = Path(spec.origin).with_name("_C.abi3.so")
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise _does_not_load(error) from error


def _does_not_load(error: Exception) -> PeerMissingError:
    return PeerMissingError(f"does not load into torch {torch.__version__} ({error}); {INSTALLING}")


def pack_for_zentorch(weights: Weights) -> Experts:
    """zentorch_fused_moe as vLLM calls it on AMD's processors; the first call packs in place."""
    gate_up, down = weights.gate_up.clone(), weights.down.clone()

    def experts(
        hidden_states: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        output = torch.empty_like(hidden_states)
        routing = (routing_weights, expert_ids)
        torch.ops.zentorch.zentorch_fused_moe(
            output, hidden_states, gate_up, down, None, None, *routing, False, "silu"
        )
        return output

    return experts


def release_zentorch() -> None:
    """Forgets all packed weights, to be called while they are still there.

    zentorch knows them by their addresses: other weights at one of them would give wrong results.
    zentorch_flush_moe_weight_cache does not prevent that (2.13.0.2).
    """
    torch.ops.zentorch.zentorch_clear_weight_cache()


def pack_for_sglang(weights: Weights) -> Experts:
    """SGLang's fused_experts_cpu on weights packed by its convert_weight_packed."""
    gate_up = torch.ops._C.convert_weight_packed(weights.gate_up)
    down = torch.ops._C.convert_weight_packed(weights.down)
    # Scales, zero points, block size, biases and the limits of the activation.
    absent = (None,) * 10

    def experts(
        hidden_states: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        output = torch.empty_like(hidden_states)
        routing = (routing_weights, expert_ids)
        torch.ops._C.fused_experts_cpu(
            output, hidden_states, gate_up, down, *routing, UNQUANTIZED, *absent, True
        )
        return output

    return experts


def pack_for_vllm(weights: Weights) -> Experts:
    """vLLM's own cpu_fused_moe, for the instruction set that vLLM would choose."""
    instruction_set = "amx" if torch.cpu._is_amx_tile_supported() else "vec"

    def packed(weight: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(weight)
        torch.ops._C.prepack_moe_weight(weight, output, instruction_set)
        return output

    gate_up, down = packed(weights.gate_up), packed(weights.down)

    def experts(
        hidden_states: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        output = torch.empty_like(hidden_states)
        routing = (routing_weights, expert_ids, False, "silu", instruction_set)
        torch.ops._C.cpu_fused_moe(output, hidden_states, gate_up, down, None, None, *routing)
        return output

    return experts
