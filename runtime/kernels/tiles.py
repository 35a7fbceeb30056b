"""Experts on tiles: batched products for what ``torch.nn.functional.grouped_mm`` does not take."""

import torch
from torch.nn import functional

from coxcompile.runtime.kernels.stacked import SortedChoices, StackedExperts

_WEIGHT_BYTES = 2**28
"""About how many bytes of weights are copied at a time."""


def run_by_tiles(
    experts: StackedExperts, hidden_states: torch.Tensor, choices: SortedChoices
) -> torch.Tensor:
    """Each choice's expert output [choices, H], in sorted order; anything for those of no slot.

    Sizes must be known without asking the device, so a slot's choices are cut into tiles of
    ``ceil(choices / slots)`` rows: whatever the routing, ``min(choices, 2 slots)`` tiles suffice. A
    tile's weights are copied to be multiplied. That is at most twice the products of the choices
    themselves (plus one row a slot), and up to six times the traffic of reading all slots' weights
    once (each of two tiles a slot reads, writes and reads again).
    """
    count, slots = len(choices.order), len(choices.ends)
    device = hidden_states.device
    rows = -(-count // slots)
    tiles = min(count, count // rows + slots)

    starts = functional.pad(choices.ends[:-1], (1, 0))
    tiles_of_slot = (choices.ends - starts + rows - 1) // rows
    tile_ends = tiles_of_slot.cumsum(0)
    tile_starts = tile_ends - tiles_of_slot

    # Tiles beyond the last slot's compute something that nobody reads.
    tile = torch.arange(tiles, device=device)
    slot = torch.searchsorted(tile_ends, tile, right=True).clamp(max=slots - 1)
    first = starts[slot] + (tile - tile_starts[slot]) * rows
    positions = (first[:, None] + torch.arange(rows, device=device)).clamp(max=count - 1)
    tokens = choices.tokens[positions]
    outputs = hidden_states.new_empty(tiles, rows, hidden_states.shape[1])
    expert_bytes = (experts.gate_up.nbytes + experts.down.nbytes) // slots
    for piece in torch.arange(tiles, device=device).split(max(1, _WEIGHT_BYTES // expert_bytes)):
        piece_slots = slot[piece]
        projected = _product(
            experts,
            hidden_states[tokens[piece]],
            experts.gate_up,
            experts.gate_up_bias,
            piece_slots,
        )
        outputs[piece] = _product(
            experts, experts.gating(projected), experts.down, experts.down_bias, piece_slots
        )

    in_slot = torch.arange(count, device=device) - starts[choices.valid_slots]
    row = tile_starts[choices.valid_slots] * rows + in_slot
    return outputs.flatten(0, 1)[row.clamp(max=tiles * rows - 1)]


def _product(
    experts: StackedExperts,
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    slots: torch.Tensor,
) -> torch.Tensor:
    product = torch.bmm(rows, experts.matrices(weight[slots]))
    return product if bias is None else product + bias[slots][:, None]
