"""The operators of rewritten graphs (namespace ``coxmoe``): schemas, fake and real kernels.

Every recognised MoE block, whatever it looked like, becomes::

    coxmoe::coalesced_experts(hidden_states, expert_ids, routing_weights, gate_up, down,
                              gate_up_bias, down_bias, *, activation, gate_layout, transposed,
                              alpha, limit) -> Tensor

It is the whole routed FFN of one layer over the whole batch (paper §3.1, §4.1, OP3): each token's
``top_k`` experts, weighted and summed.

================  ==================================================  ===========================
argument          shape                                               dtype
================  ==================================================  ===========================
hidden_states     [T, H]                                              float32, bfloat16, float16
expert_ids        [T, top_k], values in [0, E)                        int64, int32
routing_weights   [T, top_k]                                          any floating point
gate_up           [E, 2 I, H], or [E, H, 2 I] if ``transposed``       hidden_states'
down              [E, H, I], or [E, I, H] if ``transposed``           hidden_states'
gate_up_bias      [E, 2 I] or None                                    hidden_states'
down_bias         [E, H] or None                                      hidden_states'
result            [T, H]                                              hidden_states'
================  ==================================================  ===========================

``activation`` is "silu", "gelu", "gelu_tanh" or "relu" (``act(gate) * up``), or "swigluoai"
(GPT-OSS: ``(clamp(up, -limit, limit) + 1) * g * sigmoid(alpha * g)`` with
``g = clamp(gate, max=limit)``). ``gate_layout`` is "concatenated" (all gate outputs, then all up
outputs) or "interleaved" (gate, up, gate, up, …). Sums are in float32; the same inputs give the
same bits for any number of threads. Weights must be contiguous; they are read where they lie. Wrong
arguments raise ``ValueError`` (``IndexError`` for an expert id out of range) naming the argument.

Where each expert has tensors of its own, none of them is copied either::

    coxmoe::coalesced_experts.separate(hidden_states, expert_ids, routing_weights, gate, up, down,
                                       gate_bias, up_bias, down_bias, *, activation, alpha, limit)
                                       -> Tensor

``gate`` and ``up`` are lists of E tensors [I, H], ``down`` of [H, I], ``gate_bias`` and ``up_bias``
of [I], ``down_bias`` of [H], or None. The two halves of a concatenated weight
[2 I, H] are ``weight[:I]`` and ``weight[I:]``. On the CPU only.

Where a layer's experts are divided (paper §3.2: some on the accelerator, some on the CPU), each
share of them is::

    coxmoe::experts_subset_(output, hidden_states, expert_ids, routing_weights, expert_slots,
                            gate_up, down, gate_up_bias, down_bias, *, activation, gate_layout,
                            transposed, alpha, limit) -> ()

It adds to ``output`` what the experts of the share contribute; the shares of a division add up to
the whole. A token's choices of the share are summed in the router's order and added once. Choices
of other experts cost the CPU nothing; rows of tokens without a choice of the share are not touched.
The other arguments are as above, but weights and biases are stacked over the share's S slots:

================  ==================================================  ===========================
argument          shape                                               dtype
================  ==================================================  ===========================
output            [T, H], contiguous, written in place                float32
expert_slots      [E], contiguous: where in the stacked weights       int64
                  each expert lies, in [0, S); negative: elsewhere
gate_up           [S, 2 I, H], or [S, H, 2 I] if ``transposed``       hidden_states'
down              [S, H, I], or [S, I, H] if ``transposed``           hidden_states'
gate_up_bias      [S, 2 I] or None                                    hidden_states'
down_bias         [S, H] or None                                      hidden_states'
================  ==================================================  ===========================

On the CPU a slot beyond S raises ``ValueError``; on a GPU, where nothing waits for the device, ids
and slots are not checked.

``coxmoe::ipex_experts(hidden_states, expert_ids, routing_weights, gate_up, down)`` is
``coalesced_experts`` by Intel Extension for PyTorch (the option ``cpu_kernels``): bfloat16, H and I
multiples of 32, "silu", "concatenated", not transposed, without biases. The weights are the model's
own; packed copies of them are kept beside. Intermediate results are rounded to bfloat16.

``coxmoe::streamed_linear(input, weight, bias)`` is ``torch.nn.functional.linear`` for few tokens:
input [..., inputs], weight [outputs, inputs] contiguous, bias [outputs] or None, all of one dtype.

``coxmoe::count_choices_(counts, expert_ids)`` adds to counts (int64 [E], in place) how often each
expert occurs in expert_ids ([T, top_k], as above). Only graphs that count choices have it (paper
§4.3; the option ``count_choices``).
"""

from collections.abc import Sequence

import torch

from coxcompile.runtime.kernels import (
    ipex_experts,
    load_cpu_kernels,
    plain_count_choices_,
    triton_kernel,
)

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_library = torch.library.Library("coxmoe", "DEF")
_WEIGHTS_AND_OPTIONS = (
    "Tensor gate_up, Tensor down, Tensor? gate_up_bias=None, Tensor? down_bias=None, *, "
    'str activation="silu", str gate_layout="concatenated", bool transposed=False, '
    "float alpha=1.0, float? limit=None"
)
_library.define(
    "coalesced_experts(Tensor hidden_states, Tensor expert_ids, Tensor routing_weights, "
    f"{_WEIGHTS_AND_OPTIONS}) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "coalesced_experts.separate(Tensor hidden_states, Tensor expert_ids, Tensor routing_weights, "
    "Tensor[] gate, Tensor[] up, Tensor[] down, Tensor[]? gate_bias=None, Tensor[]? up_bias=None, "
    'Tensor[]? down_bias=None, *, str activation="silu", float alpha=1.0, float? limit=None) '
    "-> Tensor",
    tags=_TAGS,
)
_library.define(
    "experts_subset_(Tensor(a!) output, Tensor hidden_states, Tensor expert_ids, "
    f"Tensor routing_weights, Tensor expert_slots, {_WEIGHTS_AND_OPTIONS}) -> ()",
    tags=_TAGS,
)
_library.impl("coalesced_experts", triton_kernel("coalesced_experts"), "CUDA")
_library.impl("experts_subset_", triton_kernel("experts_subset_"), "CUDA")
_library.define(
    "streamed_linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor", tags=_TAGS
)
_library.define(
    "ipex_experts(Tensor hidden_states, Tensor expert_ids, Tensor routing_weights, Tensor gate_up, "
    "Tensor down) -> Tensor",
    tags=_TAGS,
)
_library.impl("ipex_experts", ipex_experts, "CPU")
_library.define("count_choices_(Tensor(a!) counts, Tensor expert_ids) -> ()", tags=_TAGS)
_library.impl("count_choices_", plain_count_choices_, "CompositeExplicitAutograd")


@torch.library.register_fake("coxmoe::coalesced_experts")
def _fake_coalesced_experts(
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    *,
    activation: str = "silu",
    gate_layout: str = "concatenated",
    transposed: bool = False,
    alpha: float = 1.0,
    limit: float | None = None,
) -> torch.Tensor:
    return hidden_states.new_empty(hidden_states.shape)


@torch.library.register_fake("coxmoe::coalesced_experts.separate")
def _fake_coalesced_separate_experts(
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    gate: Sequence[torch.Tensor],
    up: Sequence[torch.Tensor],
    down: Sequence[torch.Tensor],
    gate_bias: Sequence[torch.Tensor] | None = None,
    up_bias: Sequence[torch.Tensor] | None = None,
    down_bias: Sequence[torch.Tensor] | None = None,
    *,
    activation: str = "silu",
    alpha: float = 1.0,
    limit: float | None = None,
) -> torch.Tensor:
    return hidden_states.new_empty(hidden_states.shape)


@torch.library.register_fake("coxmoe::experts_subset_")
def _fake_experts_subset_(
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    expert_slots: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    *,
    activation: str = "silu",
    gate_layout: str = "concatenated",
    transposed: bool = False,
    alpha: float = 1.0,
    limit: float | None = None,
) -> None:
    return None


@torch.library.register_fake("coxmoe::ipex_experts")
def _fake_ipex_experts(
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    return hidden_states.new_empty(hidden_states.shape)


@torch.library.register_fake("coxmoe::streamed_linear")
def _fake_streamed_linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


@torch.library.register_fake("coxmoe::count_choices_")
def _fake_count_choices_(counts: torch.Tensor, expert_ids: torch.Tensor) -> None:
    return None


CPU_KERNELS = load_cpu_kernels(_library)
"""Who provides the CPU kernels: "native" or "plain"."""
