"""Adding up each token's contributions, in the router's order: the same bits every time."""

import triton
import triton.language as tl


@triton.jit
def combine_choices(
    output,
    contributions,
    expert_ids,
    weights,
    hidden,
    experts,
    TOP_K: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """output[t] = (ADD: +=) the sum of contributions [tokens * top_k, hidden] of token t.

    Only choices of experts with an address in ``weights`` count: the rows of others hold anything.
    Under ADD, rows of tokens without any are not touched.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    total = tl.zeros((BLOCK,), tl.float32)
    chosen = 0
    for place in tl.static_range(TOP_K):
        choice = token * TOP_K + place
        expert = tl.load(expert_ids + choice)
        known = (expert >= 0) & (expert < experts)
        here = tl.load(weights + expert, mask=known, other=0) != 0
        row = contributions + choice * hidden + column
        total += tl.load(row, mask=inside & here, other=0.0).to(tl.float32)
        chosen |= here.to(tl.int32)
    places = output + token * hidden + column
    if ADD:
        inside = inside & (chosen != 0)
        total += tl.load(places, mask=inside, other=0.0)
    tl.store(places, total.to(output.dtype.element_ty), mask=inside)
