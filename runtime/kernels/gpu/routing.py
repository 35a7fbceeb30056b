"""The router's choices sorted by expert, and cut into tiles, without asking the device anything."""

from dataclasses import dataclass

import torch
import triton

from coxcompile.runtime.kernels.gpu.sorting import count_choices, place_choices

BLOCK_CHOICES = 128
"""Choices that one program sorts."""
TILES_AT_A_TIME = 32


@dataclass(frozen=True)
class Routing:
    """Which choices each expert's rows are, expert by expert.

    A choice is token * top_k + its place among the token's. Only choices of experts that are here
    are among the sorted ones.

    Attributes:
        sorted_choices: int32 [choices], the first ends[E - 1] of them set.
        ends: int32 [E]; expert e has the sorted choices from ends[e - 1] (0 for the first) on.
        tile_experts: int32 [most_tiles], the expert of each tile; tile_count of them are set.
        tile_starts: int32 [most_tiles], its first sorted choice; it has at most block_tokens, and
            none of the next expert's.
        tile_count: int32 [1].
        most_tiles: tiles that there can be, whatever the routing.
    """

    sorted_choices: torch.Tensor
    ends: torch.Tensor
    tile_experts: torch.Tensor
    tile_starts: torch.Tensor
    tile_count: torch.Tensor
    most_tiles: int


def route(expert_ids: torch.Tensor, addresses: torch.Tensor, block_tokens: int) -> Routing:
    """Sort expert_ids [tokens, top_k] by expert, in tiles of at most ``block_tokens`` choices.

    Args:
        expert_ids: int64 or int32, contiguous, at least one. Those out of range are nobody's.
        addresses: int64 [E]; 0 for experts that are not here.
        block_tokens: a power of two.
    """
    choices, experts = expert_ids.numel(), len(addresses)
    blocks = triton.cdiv(choices, BLOCK_CHOICES)
    padded = max(triton.next_power_of_2(experts), 16)
    most_tiles = min(choices, choices // block_tokens + experts)
    integers = expert_ids.new_empty(0, dtype=torch.int32)
    counts = integers.new_empty(blocks, padded)
    routing = Routing(
        sorted_choices=integers.new_empty(choices),
        ends=integers.new_empty(experts),
        tile_experts=integers.new_empty(most_tiles),
        tile_starts=integers.new_empty(most_tiles),
        tile_count=integers.new_empty(1),
        most_tiles=most_tiles,
    )
    shapes = {"BLOCK": BLOCK_CHOICES, "EXPERTS": padded}
    count_choices[(blocks,)](counts, expert_ids, addresses, choices, experts, **shapes)
    place_choices[(blocks,)](
        routing.sorted_choices,
        routing.ends,
        routing.tile_experts,
        routing.tile_starts,
        routing.tile_count,
        counts,
        expert_ids,
        addresses,
        choices,
        experts,
        blocks,
        **shapes,
        BLOCK_TOKENS=block_tokens,
        COUNTS=max(8192 // padded, 1),
        TILES=TILES_AT_A_TIME,
        num_warps=8,
    )
    return routing
