"""Rows of the tokens that some experts take, moved to the front and added back, on any device.

Neither reads a value on the host: what has to be known there, the number of rows, stays a tensor.
"""

from typing import NamedTuple

import torch


class PackedRows(NamedTuple):
    """The rows of some of T tokens in front, in the tokens' order, each with its token's number.

    The rows from ``count`` on are there for the shape alone: they repeat token 0.

    Attributes:
        count: how many rows there are, int64 [1].
        tokens: each row's token, int64 [T].
        hidden_states: [T, H], any dtype.
        expert_ids: [T, top_k], int64 or int32.
        routing_weights: [T, top_k], any floating point.
    """

    count: torch.Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody misses
    tokens: torch.Tensor
    hidden_states: torch.Tensor
    expert_ids: torch.Tensor
    routing_weights: torch.Tensor


def pack_rows(
    hidden_states: torch.Tensor,
    expert_ids: torch.Tensor,
    routing_weights: torch.Tensor,
    expert_slots: torch.Tensor,
) -> PackedRows:
    """Pack the tokens with a choice among the experts whose ``expert_slots`` is not negative.

    Shapes and dtypes as in :class:`PackedRows`; expert_slots [E] int64, as for
    ``coxmoe::experts_subset_``. An expert id out of range is undefined behaviour on an accelerator.
    """
    chosen = (expert_slots[expert_ids] >= 0).any(dim=1)
    tokens = torch.nonzero_static(chosen, size=len(chosen), fill_value=0).squeeze(1)
    return PackedRows(
        chosen.sum().reshape(1),
        tokens,
        hidden_states[tokens],
        expert_ids[tokens],
        routing_weights[tokens],
    )


def add_rows_(
    output: torch.Tensor, results: torch.Tensor, tokens: torch.Tensor, count: torch.Tensor
) -> None:
    """``output[tokens[i]] += results[i]`` for i < count; the tokens of these rows are distinct.

    output [T, H] float32, results [T, H] of any floating point, tokens [T] int64, count [1] int64.
    What results and tokens hold from ``count`` on has no influence, NaN included.
    """
    places = torch.arange(len(tokens), device=tokens.device)
    unused = places >= count
    # x + -0.0 is x, bit for bit. Each unused row leaves alone a row of its own, so that no two
    # threads of a GPU meet in one.
    output.index_add_(
        0,
        torch.where(unused, places, tokens),
        results.float().masked_fill(unused[:, None], -0.0),
    )
