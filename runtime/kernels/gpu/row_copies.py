"""Copying as many rows as a number on the GPU says, to pinned memory that the GPU writes itself.

The copy engine would need that number on the host, which would have to wait for it.
"""

import torch

from coxcompile.runtime.kernels.gpu.counted_copy import copy_counted

PROGRAMS = 16
"""Enough to keep a link busy, and few beside the kernels of other streams."""
BLOCK = 2048


def copy_rows_(destination: torch.Tensor, source: torch.Tensor, count: torch.Tensor) -> None:
    """destination[i] = source[i] for i < count, on the current stream.

    Args:
        destination: [rows, ...] contiguous, pinned if on the host.
        source: of the same shape and dtype, contiguous, on the GPU.
        count: int64 [1] on the GPU, at most rows.
    """
    row_bytes = source[:1].nbytes
    whole = next(
        t
        for t in (torch.int64, torch.int32, torch.int16, torch.int8)
        if row_bytes % t.itemsize == 0
    )
    copy_counted[(PROGRAMS,)](
        destination.data_ptr(),
        source.view(-1).view(whole),
        count,
        row_bytes // whole.itemsize,
        BLOCK=BLOCK,
    )
