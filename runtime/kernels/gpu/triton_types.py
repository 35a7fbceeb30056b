"""Triton's names of PyTorch's dtypes."""

import torch
import triton.language as tl

_TYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
}


def triton_type(dtype: torch.dtype | None) -> tl.dtype | None:
    """None for None; KeyError for dtypes that no kernel here reads."""
    return None if dtype is None else _TYPES[dtype]
