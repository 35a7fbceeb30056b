"""Instructions that copy to shared memory, read or write it, and spill registers, in bytes."""

import re
from collections import Counter
from collections.abc import Iterable

_SASS_SHARED = re.compile(r"\b(?:LDS|STS|LDGSTS)\b(?P<modifiers>[\w.]*)")
_SASS_MATRIX = re.compile(r"\b(?:LDSM|STSM)\b[\w.]*\.MT?\d+(?:\.(?P<matrices>[124]))?")
_SASS_LOCAL = re.compile(r"\b(?:LDL|STL)\b(?P<modifiers>[\w.]*)")
_SASS_COPY = re.compile(r"\b(?P<name>LDGSTS|UTMALDG|UBLKCP)\b")
_AMDGCN_SHARED = re.compile(
    r"\bds_(?:read|write)(?P<two>2?)(?:st64)?_(?:tr\d*_)?(?:[bui](?P<bits>\d+))"
)
_AMDGCN_LOCAL = re.compile(r"\bscratch_(?:load|store)_(?P<size>\w+)")
_AMDGCN_COPY = re.compile(r"\b(?P<name>(?:global|buffer)_load)_\w+.*\blds\b|_load_lds_")

_SASS_BYTES = {"128": 16, "64": 8}
_AMDGCN_BYTES = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}
_MATRIX_BYTES = 128
"""Of one 8 x 8 matrix of 16-bit numbers, as a warp reads it."""
_LEAST = 4
"""Bytes of a thread's access that take no less time than narrower ones."""


def shared_traffic_bytes(instructions: Iterable[str], warps: int, warp_size: int) -> int:
    """That all warps of a CTA move from or to shared memory, matrix and bulk instructions left out.

    Args:
        instructions: SASS or AMDGCN, each run once by every warp.
        warps: of a CTA.
        warp_size: threads of a warp.
    """
    total = 0
    for line in instructions:
        if match := _SASS_MATRIX.search(line):
            total += _MATRIX_BYTES * int(match["matrices"] or 1)
        elif match := _SASS_SHARED.search(line):
            total += warp_size * _sass_bytes(match["modifiers"])
        elif match := _AMDGCN_SHARED.search(line):
            of_a_thread = max(int(match["bits"]) // 8, _LEAST)
            total += warp_size * of_a_thread * (2 if match["two"] else 1)
    return total * warps


def spill_bytes(instructions: Iterable[str]) -> int:
    """Of a thread's registers that instructions write to device memory and read back, added up.

    For NVIDIA the sum of what ``ptxas -v`` calls spill stores and spill loads: Triton's kernels
    have no local arrays, so local memory holds nothing but spilled registers.
    """
    total = 0
    for line in instructions:
        if match := _SASS_LOCAL.search(line):
            total += _sass_bytes(match["modifiers"])
        elif match := _AMDGCN_LOCAL.search(line):
            total += _AMDGCN_BYTES.get(match["size"], _LEAST)
    return total


def asynchronous_copies(instructions: Iterable[str]) -> Counter[str]:
    """Copies from device to shared memory that no warp waits for, by mnemonic.

    LDGSTS is cp.async, a thread's 4 to 16 bytes; UTMALDG and UBLKCP are bulk copies by the tensor
    memory accelerator, a whole tile.
    """
    found = (
        match["name"] or "global_load" if pattern is _AMDGCN_COPY else match["name"]
        for line in instructions
        for pattern in (_SASS_COPY, _AMDGCN_COPY)
        if (match := pattern.search(line))
    )
    return Counter(found)


def _sass_bytes(modifiers: str) -> int:
    return next(
        (size for name, size in _SASS_BYTES.items() if name in modifiers.split(".")), _LEAST
    )
