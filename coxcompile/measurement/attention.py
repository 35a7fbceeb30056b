"""Times PyTorch's attention as prefill and as decoding have it, on any device."""

from collections.abc import Callable

import torch
from torch.nn import functional

from coxcompile.measurement.probe import Sample
from coxcompile.measurement.roofline import Roofline

CACHED_TOKENS = 64

SEQUENCES, HEADS, TOKENS, HEAD_DIM = 2, 16, 1024, 128


def causal_attention(
    dtype: torch.dtype,
    device: torch.device,
    roofline: Callable[[], Roofline],
    seconds_of: Callable[[Callable[[], object]], float],
) -> Sample:
    """Causal attention of ``SEQUENCES`` prompts; flops are those of the unmasked half.

    Of shorter prompts PyTorch computes more of the masked half, so its share of the peak is less.
    """
    shape = (SEQUENCES, HEADS, TOKENS, HEAD_DIM)
    query, key, value = (torch.randn(shape, dtype=dtype, device=device) for _ in range(3))
    possible = roofline()
    seconds = seconds_of(
        lambda: functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    )
    return Sample(
        flops=4.0 * SEQUENCES * HEADS * TOKENS**2 * HEAD_DIM / 2,
        bytes_read=float(query.nbytes + key.nbytes + value.nbytes),
        seconds=seconds,
        roofline=possible,
    )


def decoding_head_seconds(
    dtype: torch.dtype,
    device: torch.device,
    seconds_of: Callable[[Callable[[], object]], float],
) -> float:
    """One KV head of one sequence in a decoding step, of a cache too short to take time to read."""
    query = torch.randn(SEQUENCES, HEADS, 1, HEAD_DIM, dtype=dtype, device=device)
    shape = (SEQUENCES, HEADS, CACHED_TOKENS, HEAD_DIM)
    key, value = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
    seconds = seconds_of(lambda: functional.scaled_dot_product_attention(query, key, value))
    return seconds / (SEQUENCES * HEADS)
