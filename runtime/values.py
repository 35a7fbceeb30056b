"""What nodes of a co-execution graph hold while it is carried out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

Values = dict[Node, Any]
Step = Callable[[Node, Values], None]
"""Carries out one node: reads its arguments from the values, and adds its own."""


def empty_like(value: Tensor, device: torch.device) -> Tensor:
    """Memory on a device for what a fake value describes, its strides included."""
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=device)


def fill_with_zeros(output: Tensor) -> None:
    """A kernel."""
    output.zero_()
