"""Matrix instructions: which kind they are, what they multiply, what they read to do so."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coxcompile.gpu_analysis.targets import MmaKind

OPERAND_BYTES = 32
"""Of one row or column of an operand along the inputs, in each of NVIDIA's instructions."""
TENSOR_MEMORY_LANES = 128

_WARP = re.compile(r"\b(?P<name>[HQI]MMA\.(?P<m>16)(?P<n>8)(?P<k>\d{1,2})[\w.]*)")
_WARP_GROUP = re.compile(
    r"\b(?P<name>[HQI]GMMA\.(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)[\w.]*)\s+(?P<operands>.*)"
)
_TENSOR_MEMORY = re.compile(r"\b(?P<name>UTC[HQI]MMA[\w.]*)\s+(?P<operands>.*)")
_WAVE = re.compile(
    r"\b(?P<name>v_mfma_[a-z]\w*?32_(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)(?:_(?P<blocks>\d+)b)?\w*)"
)
_PATTERNS = (_WARP, _WARP_GROUP, _TENSOR_MEMORY, _WAVE)
_FROM_REGISTERS = re.compile(r"R\d+, R\d+")

_PTX_MMA = re.compile(
    r"tcgen05\.mma\.cta_group::1\.kind::(?P<kind>\w+)\s+\[[^]]+\],\s*(?:\[[^]]+\]|[^,]+),"
    r"\s*[^,]+,\s*(?P<shape>%r\d+),"
)
_TENSOR_MEMORY_INPUTS = {"f16": 16, "tf32": 8, "i8": 32, "f8f6f4": 32}


@dataclass(frozen=True)
class Shape:
    """An instruction multiplies [m, k] by [k, n]."""

    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        """A product and a sum each."""
        return 2 * self.m * self.n * self.k


@dataclass(frozen=True, kw_only=True)
class MatrixWork:
    """The matrix instructions in a piece of code that all warps of a CTA run.

    Attributes:
        kind: the kind of instruction.
        names: each different one's mnemonic.
        count: instructions, as they stand in the code.
        flops: that all warps of the CTA issue with them.
        shared_bytes: that they read from shared memory themselves, all warps together.
        rate: share of the peak that instructions of this shape can reach: tensor memory's with 64
            rows use half of its lanes.
    """

    kind: MmaKind
    names: tuple[str, ...] = ()
    count: int = 0
    flops: int = 0
    shared_bytes: int = 0
    rate: float = 1.0


def is_matrix_instruction(instruction: str) -> bool:
    """Whether it multiplies matrices."""
    return any(pattern.search(instruction) for pattern in _PATTERNS)


def matrix_work(
    instructions: Sequence[str], warps: int, tensor_memory_shape: Shape | None
) -> MatrixWork:
    """What the matrix instructions among these do.

    Args:
        instructions: SASS or AMDGCN.
        warps: of a CTA.
        tensor_memory_shape: of tensor memory's instructions, which SASS does not show; see
            :func:`tensor_memory_shape`.

    Raises:
        ValueError: there are tensor memory's instructions and no shape.
    """
    if matches := _matches(_TENSOR_MEMORY, instructions):
        if tensor_memory_shape is None:
            raise ValueError("tensor_memory_shape is None, but the code has UTC*MMA; pass its PTX")
        shape = tensor_memory_shape
        # One thread of the CTA issues it. The first operand may lie in tensor memory.
        rows = [
            shape.n + (shape.m if match["operands"].count("gdesc") == 2 else 0) for match in matches
        ]
        work = _work("tensor memory", matches, 1, [shape] * len(matches), rows)
        names = tuple(f"{name} {shape.m}x{shape.n}x{shape.k}" for name in work.names)
        return dataclasses.replace(work, names=names, rate=shape.m / TENSOR_MEMORY_LANES)
    if matches := _matches(_WARP_GROUP, instructions):
        shapes = [_shape(match) for match in matches]
        # The first operand comes from registers if one stands before the descriptor.
        rows = [
            shape.n + (0 if _FROM_REGISTERS.match(match["operands"]) else shape.m)
            for match, shape in zip(matches, shapes, strict=True)
        ]
        return _work("HGMMA", matches, warps // 4, shapes, rows)
    of_a_warp: tuple[tuple[MmaKind, re.Pattern[str]], ...] = (("HMMA", _WARP), ("MFMA", _WAVE))
    for kind, pattern in of_a_warp:
        if matches := _matches(pattern, instructions):
            return _work(kind, matches, warps, [_shape(match) for match in matches], [])
    return MatrixWork(kind="none")


def tensor_memory_shape(ptx: str) -> Shape | None:
    """The shape of the tcgen05.mma instructions in PTX, from their instruction descriptor; or None.

    Raises:
        ValueError: there are several shapes.
    """
    shapes = set()
    for match in _PTX_MMA.finditer(ptx):
        values = re.findall(rf"mov\.b32\s+{re.escape(match['shape'])}, (\d+);", ptx)
        for value in map(int, values):
            # PTX ISA, instruction descriptor: bits 17-22 are N / 8, bits 24-28 are M / 16.
            m, n = (value >> 24 & 31) * 16, (value >> 17 & 63) * 8
            shapes.add(Shape(m, n, _TENSOR_MEMORY_INPUTS[match["kind"]]))
    if len(shapes) > 1:
        raise ValueError(f"tcgen05.mma of several shapes in one kernel: {shapes}")
    return shapes.pop() if shapes else None


def _matches(pattern: re.Pattern[str], instructions: Iterable[str]) -> list[re.Match[str]]:
    return [match for line in instructions if (match := pattern.search(line))]


def _shape(match: re.Match[str]) -> Shape:
    blocks = int(match.groupdict().get("blocks") or 1)
    return Shape(int(match["m"]), int(match["n"]), int(match["k"]) * blocks)


def _work(
    kind: MmaKind,
    matches: Sequence[re.Match[str]],
    times: int,
    shapes: Sequence[Shape],
    shared_rows: Sequence[int],
) -> MatrixWork:
    return MatrixWork(
        kind=kind,
        names=tuple(sorted({match["name"] for match in matches})),
        count=len(matches),
        flops=times * sum(shape.flops for shape in shapes),
        shared_bytes=times * OPERAND_BYTES * sum(shared_rows),
    )
