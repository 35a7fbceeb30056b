"""Tensors between pages that nobody may touch: a read or write past their ends is a SIGSEGV."""

import ctypes
import math
import mmap
from typing import Literal

import torch

End = Literal["first", "last"]
"""Which element of a tensor lies directly at a guard page."""

PAGE_BYTES = mmap.PAGESIZE
# Further than an access strays that is no prefetch: some rows of weights.
GUARD_PAGES = 64
_PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedMemory:
    """Copies of tensors, each in a mapping of its own that lives as long as this object."""

    def __init__(self) -> None:
        self._mappings: list[mmap.mmap] = []

    def copy(self, tensor: torch.Tensor, end: End) -> torch.Tensor:
        """The contiguous tensor again, its ``end`` at a guard page; no bytes: the tensor itself."""
        size = tensor.numel() * tensor.element_size()
        if size == 0:
            return tensor
        pages = math.ceil(size / PAGE_BYTES)
        mapping = mmap.mmap(-1, (pages + 2 * GUARD_PAGES) * PAGE_BYTES)
        self._mappings.append(mapping)
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        inside = GUARD_PAGES * PAGE_BYTES
        if end == "last":
            inside += pages * PAGE_BYTES - size
        flat = torch.frombuffer(mapping, dtype=tensor.dtype, count=tensor.numel(), offset=inside)
        flat.copy_(tensor.flatten())
        for guard in (start, start + (GUARD_PAGES + pages) * PAGE_BYTES):
            if _libc.mprotect(guard, GUARD_PAGES * PAGE_BYTES, _PROT_NONE) != 0:
                raise OSError(ctypes.get_errno(), "mprotect failed")
        return flat.view(tensor.shape)
