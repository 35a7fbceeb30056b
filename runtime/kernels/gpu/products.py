"""An expert's two projections of the tokens that chose it, all experts in one launch.

Both are computed as yᵀ = W xᵀ: weights are the left operand, whose rows fill the matrix units
whatever the number of tokens, and tokens the right one, which may be as few as 16. So one formula
serves decoding and prefill, and uses the widest instruction there is for either.
"""

import triton
import triton.language as tl

from coxcompile.runtime.kernels.gpu.activation import activate
from coxcompile.runtime.kernels.gpu.multiplying import address_of, multiply

TILES_TOGETHER: tl.constexpr = tl.constexpr(8)
"""Tiles of tokens that run side by side over all blocks of outputs, so that both stay in cache."""


@triton.jit
def project_gate_up(
    activated,
    hidden_states,
    weights,
    scales,
    biases,
    sorted_choices,
    ends,
    tile_experts,
    tile_starts,
    tile_count,
    hidden,
    intermediate,
    token_stride,
    groups,
    alpha,
    limit,
    TOP_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    FORMAT: tl.constexpr,
    WEIGHT_TYPE: tl.constexpr,
    SCALE_TYPE: tl.constexpr,
    BIAS_TYPE: tl.constexpr,
    GROUPED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN_INPUTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """activated[i] = act(gate, up) of the token of sorted choice i; shapes in ``experts.py``."""
    tiles = tl.load(tile_count)
    blocks = tl.cdiv(intermediate, BLOCK_OUTPUTS)
    for work in tl.range(tl.program_id(0), tiles * blocks, tl.num_programs(0)):
        tile, block = _tile_and_block(work, tiles, blocks)
        expert = tl.load(tile_experts + tile)
        positions = tl.load(tile_starts + tile) + tl.arange(0, BLOCK_TOKENS)
        valid = positions < tl.load(ends + expert)
        tokens = tl.load(sorted_choices + positions, mask=valid, other=0) // TOP_K
        rows = hidden_states + tokens.to(tl.int64) * token_stride
        weight = address_of(weights, expert, WEIGHT_TYPE, ALIGNMENT)
        scale = None if SCALE_TYPE is None else address_of(scales, expert, SCALE_TYPE, 2)
        first = block * BLOCK_OUTPUTS
        if INTERLEAVED:
            both, _ = multiply(
                rows,
                valid,
                weight,
                scale,
                2 * first,
                0,
                2 * intermediate,
                hidden,
                groups,
                TRANSPOSED,
                FORMAT,
                GROUPED,
                PRECISION,
                DESCRIPTORS,
                EVEN_INPUTS,
                False,
                BLOCK_TOKENS,
                2 * BLOCK_OUTPUTS,
                BLOCK_INPUTS,
            )
            pairs = both.reshape(BLOCK_OUTPUTS, 2, BLOCK_TOKENS)
            gate, up = pairs.permute(0, 2, 1).split()
        else:
            gate, up = multiply(
                rows,
                valid,
                weight,
                scale,
                first,
                intermediate,
                2 * intermediate,
                hidden,
                groups,
                TRANSPOSED,
                FORMAT,
                GROUPED,
                PRECISION,
                DESCRIPTORS,
                EVEN_INPUTS,
                True,
                BLOCK_TOKENS,
                BLOCK_OUTPUTS,
                BLOCK_INPUTS,
            )
        output = first + tl.arange(0, BLOCK_OUTPUTS)
        inside = output < intermediate
        if BIAS_TYPE is not None:
            bias = address_of(biases, expert, BIAS_TYPE, 2)
            step = 2 if INTERLEAVED else 1
            gate_bias = tl.load(bias + output * step, mask=inside, other=0.0)
            bias += 1 if INTERLEAVED else intermediate
            up_bias = tl.load(bias + output * step, mask=inside, other=0.0)
            gate += gate_bias.to(tl.float32)[:, None]
            up += up_bias.to(tl.float32)[:, None]
        result = activate(gate, up, alpha, limit, ACTIVATION)
        places = positions.to(tl.int64)[None, :] * intermediate + output[:, None]
        tl.store(
            activated + places,
            result.to(activated.dtype.element_ty),
            mask=inside[:, None] & valid[None, :],
        )


@triton.jit
def project_down(
    contributions,
    activated,
    routing_weights,
    weights,
    scales,
    biases,
    sorted_choices,
    ends,
    tile_experts,
    tile_starts,
    tile_count,
    hidden,
    intermediate,
    groups,
    TRANSPOSED: tl.constexpr,
    FORMAT: tl.constexpr,
    WEIGHT_TYPE: tl.constexpr,
    SCALE_TYPE: tl.constexpr,
    BIAS_TYPE: tl.constexpr,
    GROUPED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN_INPUTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """contributions[c] = the expert's output for choice c, times its routing weight."""
    tiles = tl.load(tile_count)
    blocks = tl.cdiv(hidden, BLOCK_OUTPUTS)
    for work in tl.range(tl.program_id(0), tiles * blocks, tl.num_programs(0)):
        tile, block = _tile_and_block(work, tiles, blocks)
        expert = tl.load(tile_experts + tile)
        positions = tl.load(tile_starts + tile) + tl.arange(0, BLOCK_TOKENS)
        valid = positions < tl.load(ends + expert)
        choices = tl.load(sorted_choices + positions, mask=valid, other=0)
        rows = activated + positions.to(tl.int64) * intermediate
        weight = address_of(weights, expert, WEIGHT_TYPE, ALIGNMENT)
        scale = None if SCALE_TYPE is None else address_of(scales, expert, SCALE_TYPE, 2)
        first = block * BLOCK_OUTPUTS
        result, _ = multiply(
            rows,
            valid,
            weight,
            scale,
            first,
            0,
            hidden,
            intermediate,
            groups,
            TRANSPOSED,
            FORMAT,
            GROUPED,
            PRECISION,
            DESCRIPTORS,
            EVEN_INPUTS,
            False,
            BLOCK_TOKENS,
            BLOCK_OUTPUTS,
            BLOCK_INPUTS,
        )
        output = first + tl.arange(0, BLOCK_OUTPUTS)
        inside = output < hidden
        if BIAS_TYPE is not None:
            bias = address_of(biases, expert, BIAS_TYPE, 2)
            result += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)[:, None]
        factors = tl.load(routing_weights + choices, mask=valid, other=0.0).to(tl.float32)
        places = choices.to(tl.int64)[None, :] * hidden + output[:, None]
        tl.store(
            contributions + places,
            (result * factors[None, :]).to(contributions.dtype.element_ty),
            mask=inside[:, None] & valid[None, :],
        )


@triton.jit
def _tile_and_block(work, tiles, blocks):
    together = TILES_TOGETHER * blocks
    first = work // together * TILES_TOGETHER
    size = tl.minimum(tiles - first, TILES_TOGETHER)
    rest = work % together
    return first + rest % size, rest // size
