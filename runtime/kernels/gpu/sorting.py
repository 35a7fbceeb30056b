"""Sorting the router's choices by expert: count, then place; see ``routing.py``."""

import triton
import triton.language as tl


@triton.jit
def count_choices(
    counts,
    expert_ids,
    addresses,
    choices,
    experts,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """counts[b, e] = how often block b of choices has expert e, if that is here."""
    expert, here, _ = _choices_of_block(expert_ids, addresses, choices, experts, BLOCK)
    expert_counts = tl.histogram(expert, EXPERTS, mask=here)
    tl.store(counts + tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS), expert_counts)


@triton.jit
def place_choices(
    sorted_choices,
    ends,
    tile_experts,
    tile_starts,
    tile_count,
    counts,
    expert_ids,
    addresses,
    choices,
    experts,
    blocks,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    COUNTS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Put each block's choices where they belong, behind those of the blocks before it."""
    own_block = tl.program_id(0)
    column = tl.arange(0, EXPERTS)
    before = tl.zeros((EXPERTS,), tl.int32)
    totals = tl.zeros((EXPERTS,), tl.int32)
    for first in range(0, blocks, COUNTS):
        block = first + tl.arange(0, COUNTS)
        places = block[:, None] * EXPERTS + column[None, :]
        some = tl.load(counts + places, mask=(block < blocks)[:, None], other=0)
        totals += tl.sum(some, 0)
        before += tl.sum(tl.where((block < own_block)[:, None], some, 0), 0)
    expert_ends = tl.cumsum(totals, 0)
    starts = expert_ends - totals

    expert, here, choice = _choices_of_block(expert_ids, addresses, choices, experts, BLOCK)
    at = tl.arange(0, BLOCK)
    earlier = (expert[:, None] == expert[None, :]) & (at[None, :] < at[:, None])
    rank = tl.sum((earlier & here[None, :]).to(tl.int32), 1)
    place = tl.gather(starts + before, tl.where(here, expert, 0), 0) + rank
    tl.store(sorted_choices + place, choice, mask=here)

    tiles = (totals + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    tile_ends = tl.cumsum(tiles, 0)
    total_tiles = tl.sum(tiles, 0)
    if own_block == 0:
        tl.store(ends + column, expert_ends, mask=column < experts)
        tl.store(tile_count, total_tiles)
    for first in range(own_block * TILES, total_tiles, blocks * TILES):
        tile = first + tl.arange(0, TILES)
        # The first expert whose tiles end beyond this one, and what precedes them.
        passed = tile_ends[None, :] <= tile[:, None]
        tile_expert = tl.sum(passed.to(tl.int32), 1)
        tiles_before = tl.sum(tl.where(passed, tiles[None, :], 0), 1)
        choices_before = tl.sum(tl.where(passed, totals[None, :], 0), 1)
        valid = tile < total_tiles
        tl.store(tile_experts + tile, tile_expert, mask=valid)
        start = choices_before + (tile - tiles_before) * BLOCK_TOKENS
        tl.store(tile_starts + tile, start, mask=valid)


@triton.jit
def _choices_of_block(expert_ids, addresses, choices, experts, BLOCK: tl.constexpr):
    choice = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(expert_ids + choice, mask=choice < choices, other=-1)
    known = (expert >= 0) & (expert < experts)
    here = known & (tl.load(addresses + expert, mask=known, other=0) != 0)
    return tl.where(known, expert, 0).to(tl.int32), here, choice
