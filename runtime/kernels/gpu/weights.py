"""Experts' weights as a table of addresses: one code path for stacks, arenas and single tensors."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import triton

from coxcompile.runtime.kernels.gpu.pointers import point_at_slots

Format = Literal["dense", "float8", "int8", "int4"]
"""How weights are stored: as the tokens, or quantised, see ``weight_tiles.unscaled``."""

PARTS = ("gate_up", "down", "gate_up_bias", "down_bias", "gate_up_scales", "down_scales")
"""What the rows of the table of addresses are of."""

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


@dataclass(frozen=True, kw_only=True)
class ExpertWeights:
    """The weights of a layer's experts, wherever each of them lies.

    Attributes:
        addresses: int64 [6, E] in the order of ``PARTS``, on the tokens' device; 0 for experts that
            are not here, and for parts that there are none of.
        gate_up: [2 I, H] matrices.
        down: [H, I] matrices.
        transposed: matrices lie as [inputs, outputs].
        format: of both projections.
        owners: the tensors at the addresses.
    """

    addresses: torch.Tensor
    gate_up: Projection
    down: Projection
    transposed: bool
    format: Format
    owners: tuple[torch.Tensor, ...]

    @property
    def experts(self) -> int:
        """All of them (E), those that are not here too."""
        return self.addresses.shape[1]

    @classmethod
    def from_stacked(
        cls,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        gate_up_bias: torch.Tensor | None = None,
        down_bias: torch.Tensor | None = None,
        gate_up_scales: torch.Tensor | None = None,
        down_scales: torch.Tensor | None = None,
        *,
        expert_slots: torch.Tensor | None = None,
        transposed: bool = False,
        format: Format = "dense",
    ) -> "ExpertWeights":
        """Of weights stacked over S slots; shapes as in :mod:`coxcompile.ops`, each contiguous.

        Nothing waits for the device: the table is computed there.

        Args:
            gate_up: "int4": [S, 2 I, H / 2] uint8.
            down: "int4": [S, H, I / 2] uint8.
            gate_up_bias: any floating point.
            down_bias: likewise.
            gate_up_scales: [S, 2 I, groups], any floating point; needed if quantised.
            down_scales: [S, H, groups], likewise.
            expert_slots: int64 [E], each expert's slot, negative for experts that are not here;
                None: expert e has slot e.
            transposed: only if "dense".
            format: what the weights are.

        Raises:
            ValueError: shapes, dtypes or strides contradict each other or ``format``.
        """
        stacks = (gate_up, down, gate_up_bias, down_bias, gate_up_scales, down_scales)
        slots = len(gate_up)
        for name, stack in zip(PARTS, stacks, strict=True):
            if stack is not None and (len(stack) != slots or not stack.is_contiguous()):
                raise ValueError(
                    f"{name} has shape {tuple(stack.shape)} and strides {stack.stride()}, but must "
                    f"be contiguous and have {slots} slots, as gate_up has"
                )
        samples = [None if stack is None else stack[0] for stack in stacks]
        projections = _describe(samples, transposed, format)
        if expert_slots is None:
            expert_slots = torch.arange(slots, device=gate_up.device)
        experts = len(expert_slots)
        addresses = torch.empty(len(PARTS), experts, dtype=torch.int64, device=gate_up.device)
        if experts:
            firsts = tuple(0 if stack is None else stack.data_ptr() for stack in stacks)
            slot_bytes = tuple(0 if stack is None else stack[:1].nbytes for stack in stacks)
            block = triton.next_power_of_2(experts)
            point_at_slots[(1,)](addresses, expert_slots, firsts, slot_bytes, experts, BLOCK=block)
        return cls(
            addresses=addresses,
            gate_up=projections[0],
            down=projections[1],
            transposed=transposed,
            format=format,
            owners=tuple(stack for stack in stacks if stack is not None),
        )

    @classmethod
    def from_tensors(
        cls,
        experts: Sequence[Sequence[torch.Tensor | None] | None],
        *,
        transposed: bool = False,
        format: Format = "dense",
    ) -> "ExpertWeights":
        """Of separate tensors: for each expert its ``PARTS``, or None if it is not here.

        Shapes and dtypes as for ``from_stacked``, without the slots; trailing parts may be left
        out. The table is made on the host and copied.

        Raises:
            ValueError: no expert is here, or experts differ in shape, dtype or device, or as for
                ``from_stacked``.
        """
        rows = [
            [None] * len(PARTS) if parts is None else [*parts, *[None] * (len(PARTS) - len(parts))]
            for parts in experts
        ]
        present = [row for row in rows if row[0] is not None]
        if not present:
            raise ValueError("experts has no expert that is here; give at least one its tensors")
        for row in present:
            for name, tensor, first in zip(PARTS, row, present[0], strict=True):
                if _likeness(tensor) != _likeness(first):
                    raise ValueError(
                        f"{name} is {_likeness(tensor)} for one expert and {_likeness(first)} for "
                        "another; all need the same shape, dtype and device"
                    )
                if tensor is not None and not tensor.is_contiguous():
                    raise ValueError(
                        f"{name} has strides {tensor.stride()}, but must be contiguous; call "
                        ".contiguous()"
                    )
        described = [_describe(row, transposed, format) for row in present]
        projections = [
            dataclasses.replace(all_of[0], alignment=min(one.alignment for one in all_of))
            for all_of in zip(*described, strict=True)
        ]
        table = [[0 if part is None else part.data_ptr() for part in row] for row in rows]
        owners = tuple(tensor for row in present for tensor in row if tensor is not None)
        addresses = torch.tensor(table, dtype=torch.int64).t().contiguous()
        return cls(
            addresses=addresses.to(owners[0].device),
            gate_up=projections[0],
            down=projections[1],
            transposed=transposed,
            format=format,
            owners=owners,
        )


def _describe(
    parts: Sequence[torch.Tensor | None], transposed: bool, format: Format
) -> tuple[Projection, Projection]:
    """Of one expert's parts, in the order of ``PARTS``."""
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


def _likeness(tensor: torch.Tensor | None) -> str:
    return "None" if tensor is None else f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


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
