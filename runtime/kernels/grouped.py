"""``coxmoe::experts_subset_`` as grouped products, for accelerators: never waits for the device.

Choices are sorted by slot on the device and no size depends on a value there, so that the host
queues the whole operator and goes on. It holds ``top_k`` rows a token of each intermediate result,
those of experts elsewhere too: only the products leave these out.
"""

import torch
from torch.nn import functional

from coxcompile.runtime.kernels.gating import Gating
from coxcompile.runtime.kernels.plain import check_output
from coxcompile.runtime.kernels.stacked import SortedChoices, StackedExperts
from coxcompile.runtime.kernels.tiles import run_by_tiles


def experts_subset_(
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
    """Shapes, dtypes and meaning as in :mod:`coxcompile.ops`; runs on any device.

    Expert ids and slots are not checked, which would take waiting for them: one out of range is
    undefined behaviour on an accelerator. Products in bfloat16 and float16 are rounded to that
    type, once after each projection; sums over choices are in float32.

    Raises:
        ValueError: ``activation`` or ``gate_layout`` is unknown, or ``output`` has another shape or
            dtype.
    """
    gating = Gating("experts_subset_", activation, gate_layout, alpha, limit)
    check_output(gating.op, output, hidden_states)
    if expert_ids.numel() == 0 or len(gate_up) == 0:
        return
    experts = StackedExperts(gate_up, down, gate_up_bias, down_bias, transposed, gating)
    choice_slots = expert_slots[expert_ids]
    choices = SortedChoices.of(choice_slots, len(gate_up))
    run = _run_by_grouped_mm if grouped_mm_takes(experts) else run_by_tiles
    results = run(experts, hidden_states, choices)

    weighted = results.float() * routing_weights.flatten()[choices.order, None].float()
    by_choice = torch.empty_like(weighted).index_copy_(0, choices.order, weighted)
    own = choice_slots >= 0
    # The rows of choices of no slot hold anything, NaN included.
    sums = by_choice.view(*own.shape, -1).masked_fill(~own[..., None], 0).sum(1)
    # x + -0.0 is x, bit for bit.
    output.add_(sums.masked_fill(~own.any(dim=1, keepdim=True), -0.0))


def grouped_mm_takes(experts: StackedExperts) -> bool:
    """Whether grouped_mm runs on the device alone; it falls back on reading the groups' sizes."""
    gate_up, down = experts.gate_up, experts.down
    if gate_up.dtype != torch.bfloat16:
        return False
    if gate_up.is_cuda and torch.cuda.get_device_capability(gate_up.device)[0] not in (9, 10):
        return False
    # 16 bytes; the first address of an allocation is a multiple already.
    sizes = (*down.shape[1:], gate_up.storage_offset(), down.storage_offset())
    return all(size % 8 == 0 for size in sizes)


def _run_by_grouped_mm(
    experts: StackedExperts, hidden_states: torch.Tensor, choices: SortedChoices
) -> torch.Tensor:
    """Each choice's expert output [choices, H], in sorted order; anything for those of no slot."""
    projected = _product(
        experts, hidden_states[choices.tokens], experts.gate_up, experts.gate_up_bias, choices
    )
    return _product(experts, experts.gating(projected), experts.down, experts.down_bias, choices)


def _product(
    experts: StackedExperts,
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    choices: SortedChoices,
) -> torch.Tensor:
    # Rows beyond the last slot's are not written.
    product = functional.grouped_mm(rows, experts.matrices(weight), offs=choices.ends.int())
    return product if bias is None else product + bias[choices.valid_slots]
