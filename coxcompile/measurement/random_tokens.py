"""Random tokens and their experts, for checks and timings."""

from typing import Literal

import torch
from torch import Tensor


def random_tokens(
    tokens: int, hidden: int, top_k: int, dtype: torch.dtype, popularity: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [T, H], expert ids [T, top_k] int64, routing weights [T, top_k] float32.

    Args:
        tokens: T.
        hidden: H.
        top_k: different experts of each token.
        dtype: of the hidden states.
        popularity: [E], not negative: how likely each expert is chosen, as of :func:`popularity`.
    """
    device = popularity.device
    # The top k of log-probabilities plus Gumbel noise: a draw without replacement.
    noise = -torch.empty(tokens, len(popularity), device=device).exponential_().log()
    expert_ids = (popularity.log() + noise).topk(top_k, dim=1).indices
    routing_weights = torch.rand(tokens, top_k, device=device) + 0.1
    routing_weights /= routing_weights.sum(dim=1, keepdim=True)
    return torch.randn(tokens, hidden, device=device).to(dtype), expert_ids, routing_weights


def popularity(
    kind: Literal["uniform", "skewed", "few"], experts: int, top_k: int, device: torch.device
) -> Tensor:
    """Of experts: all alike, by Zipf's law in random order, or ``top_k`` + 1 that all choose of."""
    ranks = torch.randperm(experts, device=device)
    if kind == "few":
        return (ranks <= top_k).float()
    return torch.ones_like(ranks, dtype=torch.float32) if kind == "uniform" else 1 / (ranks + 1)
