"""A tile of W xᵀ, of one expert's weights and some tokens, in float32."""

import triton
import triton.language as tl

from coxcompile.runtime.kernels.gpu.weight_tiles import unscaled, weight_descriptor, weight_tile


@triton.jit
def address_of(table, expert, TYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """The pointer of this type that a table of addresses has for an expert."""
    address = tl.load(table + expert).to(tl.pointer_type(TYPE))
    return tl.multiple_of(address, ALIGNMENT)


@triton.jit
def multiply(
    rows,
    valid,
    weight,
    scales,
    first_output,
    second_offset,
    outputs,
    inputs,
    groups,
    TRANSPOSED: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUPED: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN_INPUTS: tl.constexpr,
    PAIRED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """W xᵀ [BLOCK_OUTPUTS, BLOCK_TOKENS] in float32, from ``first_output`` on.

    If PAIRED, the same ``second_offset`` outputs further on is the second result. ``rows`` points
    to each token's inputs. Scales are [outputs, groups]: one for so many inputs if GROUPED, else
    one (groups = 1).
    """
    TYPE: tl.constexpr = rows.dtype.element_ty
    at = tl.arange(0, BLOCK_INPUTS)
    token_places = rows[:, None] + at[None, :]
    first = tl.zeros((BLOCK_OUTPUTS, BLOCK_TOKENS), tl.float32)
    second = tl.zeros((BLOCK_OUTPUTS, BLOCK_TOKENS), tl.float32)
    descriptor = None
    if DESCRIPTORS:
        descriptor = weight_descriptor(
            weight, outputs, inputs, TRANSPOSED, FORMAT, BLOCK_OUTPUTS, BLOCK_INPUTS
        )
    output = first_output + tl.arange(0, BLOCK_OUTPUTS)
    for start in range(0, inputs, BLOCK_INPUTS):
        mask = valid[:, None]
        if not EVEN_INPUTS:
            mask = mask & (at < inputs - start)[None, :]
        tokens = tl.load(token_places + start, mask=mask, other=0.0).trans()
        tile = weight_tile(
            weight,
            descriptor,
            first_output,
            start,
            outputs,
            inputs,
            TRANSPOSED,
            FORMAT,
            BLOCK_OUTPUTS,
            BLOCK_INPUTS,
            EVEN_INPUTS,
        )
        group = start * groups // inputs
        first = _add_product(
            first,
            tile,
            tokens,
            scales,
            output,
            outputs,
            groups,
            group,
            FORMAT,
            GROUPED,
            PRECISION,
            TYPE,
        )
        if PAIRED:
            tile = weight_tile(
                weight,
                descriptor,
                first_output + second_offset,
                start,
                outputs,
                inputs,
                TRANSPOSED,
                FORMAT,
                BLOCK_OUTPUTS,
                BLOCK_INPUTS,
                EVEN_INPUTS,
            )
            second = _add_product(
                second,
                tile,
                tokens,
                scales,
                output + second_offset,
                outputs,
                groups,
                group,
                FORMAT,
                GROUPED,
                PRECISION,
                TYPE,
            )
    if scales is not None and not GROUPED:
        first *= _scales_of(scales, output, outputs, 1, 0)
        if PAIRED:
            second *= _scales_of(scales, output + second_offset, outputs, 1, 0)
    return first, second


@triton.jit
def _add_product(
    sums,
    tile,
    tokens,
    scales,
    output,
    outputs,
    groups,
    group,
    FORMAT: tl.constexpr,
    GROUPED: tl.constexpr,
    PRECISION: tl.constexpr,
    TYPE: tl.constexpr,
):
    numbers = unscaled(tile, FORMAT, TYPE)
    if GROUPED:
        product = tl.dot(numbers, tokens, input_precision=PRECISION)
        return sums + product * _scales_of(scales, output, outputs, groups, group)
    return tl.dot(numbers, tokens, sums, input_precision=PRECISION)


@triton.jit
def _scales_of(scales, output, outputs, groups, group):
    scale = tl.load(scales + output * groups + group, mask=output < outputs, other=0.0)
    return scale.to(tl.float32)[:, None]
