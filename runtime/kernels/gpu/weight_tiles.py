"""Tiles of one expert's weights, whatever these are stored as, in the type of the tokens."""

import triton
import triton.language as tl

FLOAT8_REBIAS: tl.constexpr = tl.constexpr(2.0**120)
"""From the exponent bias of float8 (7) to that of float32 (127)."""


@triton.jit
def weight_tile(
    weight,
    descriptor,
    first_output,
    first_input,
    outputs,
    inputs,
    TRANSPOSED: tl.constexpr,
    FORMAT: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    EVEN_INPUTS: tl.constexpr,
):
    """Load W[first_output + i, first_input + j] as [BLOCK_OUTPUTS, BLOCK_INPUTS], as stored.

    ``weight`` points to W [outputs, inputs] row-major, or [inputs, outputs] if TRANSPOSED. What
    lies outside of it is 0. Offsets within an expert's matrix are 32-bit integers. With FORMAT
    "int4" two inputs share a byte, and the tile is half as wide. A ``descriptor`` that is not None
    is used in the pointer's place.
    """
    PER_BYTE: tl.constexpr = 2 if FORMAT == "int4" else 1
    WIDTH: tl.constexpr = BLOCK_INPUTS // PER_BYTE
    column = first_input // PER_BYTE
    columns = inputs // PER_BYTE
    if descriptor is not None:
        if TRANSPOSED:
            tile = descriptor.load([column, first_output]).trans()
        else:
            tile = descriptor.load([first_output, column])
    else:
        at = tl.arange(0, WIDTH)
        output = first_output + tl.arange(0, BLOCK_OUTPUTS)
        mask = (output < outputs)[:, None]
        if not EVEN_INPUTS:
            mask = mask & (at < columns - column)[None, :]
        if TRANSPOSED:
            places = at[None, :] * outputs + output[:, None]
            tile = tl.load(weight + places + column * outputs, mask=mask, other=0.0)
        else:
            places = output[:, None] * columns + at[None, :]
            tile = tl.load(weight + places + column, mask=mask, other=0.0)
    return tile


@triton.jit
def weight_descriptor(
    weight,
    outputs,
    inputs,
    TRANSPOSED: tl.constexpr,
    FORMAT: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """A tensor descriptor of W, for ``weight_tile``. Rows must be multiples of 16 bytes."""
    PER_BYTE: tl.constexpr = 2 if FORMAT == "int4" else 1
    columns = inputs // PER_BYTE
    if TRANSPOSED:
        descriptor = tl.make_tensor_descriptor(
            weight,
            shape=[columns, outputs],
            strides=[outputs, 1],
            block_shape=[BLOCK_INPUTS // PER_BYTE, BLOCK_OUTPUTS],
        )
    else:
        descriptor = tl.make_tensor_descriptor(
            weight,
            shape=[outputs, columns],
            strides=[columns, 1],
            block_shape=[BLOCK_OUTPUTS, BLOCK_INPUTS // PER_BYTE],
        )
    return descriptor


@triton.jit
def unscaled(tile, FORMAT: tl.constexpr, TYPE: tl.constexpr):
    """The numbers that a loaded tile stands for, before scaling; TYPE holds each exactly.

    "float8" is e4m3fn, decoded by shifting its bits into place: not all targets know the type, and
    NaN is not a weight. "int4" is two numbers in [-8, 8) a byte, 8 added, the even input in the low
    half.
    """
    if FORMAT == "dense":
        numbers = tile
    elif FORMAT == "float8":
        bits = tile.to(tl.uint32)
        shifted = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
        numbers = shifted.to(tl.float32, bitcast=True) * FLOAT8_REBIAS
    elif FORMAT == "int8":
        numbers = tile.to(tl.float32)
    else:
        low = (tile & 15).to(tl.float32) - 8.0
        high = (tile >> 4).to(tl.float32) - 8.0
        pairs = tl.join(low, high)
        numbers = pairs.reshape(pairs.shape[0], pairs.shape[1] * 2)
    return numbers.to(TYPE)
