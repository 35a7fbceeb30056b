"""Numbers that numpy has no type for, between their bits and float32."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

FLOAT8 = {
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
    "fp8e4b8": torch.float8_e4m3fnuz,
    "fp8e5b16": torch.float8_e5m2fnuz,
}
"""By Triton's name."""


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values of bfloat16 numbers that are given as their bits; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of values rounded to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.array(values, dtype=np.float32, order="C").view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


@cache
def float8_values(name: str) -> NDArray[np.float32]:
    """[256]: the value of each float8 of this type, by its bits."""
    bits = torch.arange(256, dtype=torch.uint8)
    return bits.view(FLOAT8[name]).to(torch.float32).numpy()
