"""Copies of as many rows as a number on the device says, interpreted."""

import pytest
import torch

from coxcompile.runtime.emulated.triton_driver import triton_target
from coxcompile.runtime.kernels.gpu.row_copies import copy_rows_
from tests.triton_checks import checked


@pytest.mark.parametrize("count", [0, 1, 17, 40])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((40, 300), torch.bfloat16),
        ((40, 33), torch.bfloat16),
        ((40, 3), torch.int64),
        ((40,), torch.int64),
        ((40, 5), torch.int8),
    ],
    ids=str,
)
def test_rows_up_to_the_count_are_copied(
    count: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    source = (torch.randn(shape) * 50).to(dtype)
    destination = torch.full_like(source, 99)
    with triton_target("sm_90"), checked(extra_tensors=[destination]):
        copy_rows_(destination, source, torch.tensor([count]))
    assert torch.equal(destination[:count], source[:count])
    assert (destination[count:] == 99).all()
