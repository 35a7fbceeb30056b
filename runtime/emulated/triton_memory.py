"""Watching the memory that interpreted Triton kernels read and write."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from triton.runtime.interpreter import TensorHandle

Access = Literal["load", "store", "atomic"]
Program = tuple[int, int, int]


class MemoryObserver(Protocol):
    """Told of every access before it happens; an exception it raises ends the launch."""

    def begin(self, tensors: Sequence[torch.Tensor]) -> None:
        """A launch begins that was given these tensors, by themselves or in descriptors."""

    def access(
        self, kind: Access, program: Program, addresses: NDArray[np.uint64], element_bytes: int
    ) -> None:
        """A program reads or writes ``element_bytes`` at each address [lanes not masked]."""


_observer: MemoryObserver | None = None


@contextmanager
def observed(observer: MemoryObserver) -> Iterator[None]:
    """Tell ``observer`` of the launches on all threads, instead of the one before."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def begin_launch(tensors: Sequence[torch.Tensor]) -> None:
    """Tell the observer, if there is one."""
    if _observer is not None:
        _observer.begin(tensors)


def notify_observer(
    kind: Access, program: Program, pointers: TensorHandle, mask: TensorHandle | None
) -> None:
    """Tell the observer, if there is one, of an access; ``mask`` as ``tl.load`` takes it."""
    if _observer is None:
        return
    addresses = np.asarray(pointers.data)
    if mask is not None:
        lanes = mask.data if isinstance(mask, TensorHandle) else mask
        addresses, lanes = np.broadcast_arrays(addresses, lanes)
        addresses = addresses[lanes.astype(bool)]
    if addresses.size:
        element_bytes = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        _observer.access(kind, program, addresses.reshape(-1).astype(np.uint64), element_bytes)
