"""Checks of the memory that interpreted Triton kernels touch, which a GPU does not make."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from coxcompile.runtime.emulated.triton_memory import Access, Program, observed


@contextmanager
def checked(extra_tensors: Sequence[torch.Tensor] = ()) -> Iterator[None]:
    """Let interpreted launches raise for memory accesses that are wrong; masked lanes are free.

    Loads, stores and atomics, through descriptors too, have to lie within the launch's tensors or
    ``extra_tensors``: those whose addresses the kernel finds in a table. A view is as long as its
    last element says, whatever it is a view of. Not found: an access of one tensor that lands in
    another, and programs that load what another one stores.

    Raises:
        IndexError: an access outside of all tensors.
        RuntimeError: two programs of a launch store to the same address.
    """
    with observed(_MemoryChecks(extra_tensors)):
        yield


class _MemoryChecks:
    def __init__(self, extra_tensors: Sequence[torch.Tensor]) -> None:
        self.extra_tensors = extra_tensors

    def begin(self, tensors: Sequence[torch.Tensor]) -> None:
        ranges = _merged([_extent(t) for t in (*tensors, *self.extra_tensors) if t.numel()])
        # The first range is empty, so that every address comes after the begin of one.
        self.begins = np.array([0, *(begin for begin, _ in ranges)], dtype=np.uint64)
        self.ends = np.array([0, *(end for _, end in ranges)], dtype=np.uint64)
        self.programs: list[Program] = []
        self.writers: dict[int, NDArray[np.int32]] = {}

    def access(
        self, kind: Access, program: Program, addresses: NDArray[np.uint64], element_bytes: int
    ) -> None:
        ranges = np.searchsorted(self.begins, addresses, side="right") - 1
        outside = addresses + np.uint64(element_bytes) > self.ends[ranges]
        if outside.any():
            first = outside.argmax()
            beyond = int(addresses[first] - self.ends[ranges[first]])
            raise IndexError(
                f"program {program}: {outside.sum()} of {addresses.size} lanes {kind} outside of "
                f"the tensors; the first at {int(addresses[first]):#x}, {beyond} bytes after one"
            )
        if kind == "store":
            for which in np.unique(ranges):
                offsets = addresses[ranges == which] - self.begins[which]
                self._claim(int(which), program, offsets.astype(np.int64), element_bytes)

    def _claim(
        self, which: int, program: Program, offsets: NDArray[np.int64], element_bytes: int
    ) -> None:
        if not self.programs or self.programs[-1] != program:
            self.programs.append(program)
        if which not in self.writers:
            size = int(self.ends[which] - self.begins[which])
            self.writers[which] = np.full(size, -1, dtype=np.int32)
        places = offsets[:, None] + np.arange(element_bytes)
        mine, writers = len(self.programs) - 1, self.writers[which][places]
        others = (writers >= 0) & (writers != mine)
        if others.any():
            other = self.programs[writers[others][0]]
            address = int(self.begins[which]) + int(places[others][0])
            raise RuntimeError(f"programs {other} and {program} both store to {address:#x}")
        self.writers[which][places] = mine


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last address of its elements, the last exclusive."""
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if merged and begin < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged
