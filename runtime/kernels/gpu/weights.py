"""Experts' weights as a table of addresses: one code path for stacks, arenas and single tensors."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from coxcompile.runtime.kernels.gpu.pointers import point_at_slots
from coxcompile.runtime.kernels.gpu.projections import PARTS, Format, Projection, describe


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
        projections = describe(samples, transposed, format)
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
        described = [describe(row, transposed, format) for row in present]
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


def _likeness(tensor: torch.Tensor | None) -> str:
    return "None" if tensor is None else f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
