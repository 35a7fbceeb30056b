"""The experts through Intel Extension for PyTorch's fused operator, on weights it has packed."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from coxcompile.runtime.kernels.plain import check_ids
from coxcompile.runtime.versions import Version, version_of

COUNTED_ELEMENTS = 1 << 31
"""The operator counts elements of weights and of what it allocates in 32 bits, unchecked."""
_ROWS, _COLUMNS = 16, 32
"""The blocks of a product, for which each thread has room."""


def ipex_experts(
    hidden_states: Tensor,
    expert_ids: Tensor,
    routing_weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
) -> Tensor:
    """``coxmoe::ipex_experts``; shapes, dtypes and meaning as in :mod:`coxcompile.ops`.

    Raises:
        ValueError: the call has more tokens than the operator can count, or the weights were made
            in inference mode.
        IndexError: an expert id is out of range.
    """
    op = "ipex_experts"
    _check_tokens(op, *expert_ids.shape, *down.shape[1:])
    check_ids(op, expert_ids, len(gate_up))
    packed = _packed_experts.of(gate_up, down)
    result: Tensor = torch.ops.torch_ipex.fused_experts(
        hidden_states.contiguous(),
        packed.gate_up,
        packed.down,
        routing_weights.float().contiguous(),
        expert_ids.int().contiguous(),
        *(False, True, False),  # in place; packed; summed over processes
        *(False, 0, 0, 0, None, None, None, None, None, None),  # nothing is quantised
    )
    return result


def _check_tokens(op: str, tokens: int, top_k: int, hidden: int, intermediate: int) -> None:
    a_choice = hidden + intermediate
    a_thread = _ROWS * hidden + 2 * _ROWS * _COLUMNS * 2  # the last factor: floats, in bfloat16s
    most = (COUNTED_ELEMENTS - 1 - torch.get_num_threads() * a_thread) // (top_k * a_choice)
    if tokens > most:
        raise ValueError(
            f"{op}: hidden_states has {tokens} tokens, but the operator can count the intermediate "
            f"results of {most} at most; call with fewer, or use "
            'options={"cpu_kernels": "auto"}'
        )


@dataclass(frozen=True)
class _Packed:
    """Copies of a layer's weights in the operator's layout, and what they were made from."""

    versions: tuple[Version, Version]
    gate_up: Tensor
    down: Tensor


class _PackedExperts:
    """The packed copies of all layers, each for as long as its weights live.

    All graphs of a model share them. They are made again when a weight changed, which every call
    asks; writing through ``Tensor.data`` in place is the one change that nobody counts.
    """

    def __init__(self) -> None:
        self._packed = WeakTensorKeyDictionary()

    def of(self, gate_up: Tensor, down: Tensor) -> _Packed:
        versions = (_version("gate_up", gate_up), _version("down", down))
        packed: _Packed | None = self._packed.get(gate_up)
        if packed is None or packed.versions != versions:
            # The stale copies first: three of a layer's weights need not fit.
            self._packed.pop(gate_up, None)
            del packed
            packed = _Packed(
                versions, *torch.ops.torch_ipex.convert_weight_packed_moe_bf16(gate_up, down)
            )
            self._packed[gate_up] = packed
        return packed


def _version(name: str, weight: Tensor) -> Version:
    version = version_of(weight, constant=False)
    if version is None:
        raise ValueError(
            f"ipex_experts: {name} was made in inference mode, where PyTorch counts no changes, so "
            "packed copies could go stale; load the model outside of it"
        )
    return version


_packed_experts = _PackedExperts()
