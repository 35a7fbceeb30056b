"""What the matrices of one projection have in common, whoever's expert they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Format = Literal["dense", "float8", "int8", "int4"]
"""How weights are stored: as the tokens, or quantised, see ``weight_tiles.unscaled``."""

PARTS = ("gate_up", "down", "gate_up_bias", "down_bias", "gate_up_scales", "down_scales")
"""What an expert consists of."""

_STORED: dict[Format, torch.dtype] = {
    "float8": torch.float8_e4m3fn,
    "int8": torch.int8,
    "int4": torch.uint8,
}


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What one projection's matrices have in common.

    Attributes:
        outputs: rows of a matrix W, of which y = W x.
        inputs: its columns.
        dtype: of the stored weights.
        bias_dtype: None without biases.
        scale_dtype: None without scales.
        groups: the inputs of a row are scaled in so many groups of equal size.
        alignment: of every matrix and every row of it, in bytes, at most 16.
    """

    outputs: int
    inputs: int
    dtype: torch.dtype
    bias_dtype: torch.dtype | None
    scale_dtype: torch.dtype | None
    groups: int
    alignment: int


def describe(
    parts: Sequence[torch.Tensor | None], transposed: bool, format: Format
) -> tuple[Projection, Projection]:
    """gate_up's projection and down's, from one expert's parts in the order of ``PARTS``.

    Raises:
        ValueError: shapes or dtypes contradict each other or ``format``.
    """
    gate_up, down, *others = parts
    assert gate_up is not None
    assert down is not None
    for name, matrix in (("gate_up", gate_up), ("down", down)):
        stored = _STORED.get(format)
        if (matrix.dtype != stored) if stored else not matrix.dtype.is_floating_point:
            raise ValueError(
                f"{name} is {matrix.dtype}, but format {format!r} means "
                f"{stored or 'a floating-point type'}"
            )
    if transposed and format != "dense":
        raise ValueError(
            f"transposed is True with format {format!r}, but only dense weights can be transposed; "
            "store quantised weights as [outputs, inputs]"
        )
    projections = []
    for number, matrix in enumerate((gate_up, down)):
        name, bias, scales = PARTS[number], others[number], others[2 + number]
        outputs, inputs = matrix.shape[::-1] if transposed else matrix.shape
        if format == "int4":
            inputs *= 2
        if bias is not None and bias.shape != (outputs,):
            raise ValueError(
                f"{name}_bias has {tuple(bias.shape)} an expert, but must have ({outputs},)"
            )
        groups = _groups(f"{name}_scales", scales, format, outputs, inputs)
        projections.append(
            Projection(
                outputs=outputs,
                inputs=inputs,
                dtype=matrix.dtype,
                bias_dtype=None if bias is None else bias.dtype,
                scale_dtype=None if scales is None else scales.dtype,
                groups=groups,
                alignment=math.gcd(16, matrix.data_ptr(), matrix.stride(0) * matrix.itemsize),
            )
        )
    if projections[0].outputs != 2 * projections[1].inputs or (
        projections[0].inputs != projections[1].outputs
    ):
        raise ValueError(
            f"gate_up is {projections[0].inputs} to {projections[0].outputs} and down "
            f"{projections[1].inputs} to {projections[1].outputs}, but they must be H to 2 I and I "
            "to H"
        )
    return projections[0], projections[1]


def _groups(
    name: str, scales: torch.Tensor | None, format: Format, outputs: int, inputs: int
) -> int:
    if (scales is None) != (format == "dense"):
        raise ValueError(
            f"{name} is {'None' if scales is None else 'given'}, but format {format!r} "
            f"{'has none' if format == 'dense' else 'needs scales'}"
        )
    if scales is None:
        return 1
    if scales.dim() != 2 or len(scales) != outputs or inputs % max(scales.shape[1], 1):
        raise ValueError(
            f"{name} has {tuple(scales.shape)} an expert, but must have ({outputs}, groups) with "
            f"groups that divide the {inputs} inputs"
        )
    return int(scales.shape[1])
