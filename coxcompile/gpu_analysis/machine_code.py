"""What the machine code of a compiled Triton kernel tells: resources, and its loop's work."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triton import knobs

from coxcompile.gpu_analysis.listings import Listing, amdgcn, sass
from coxcompile.gpu_analysis.matrix_instructions import (
    MatrixWork,
    is_matrix_instruction,
    matrix_work,
    tensor_memory_shape,
)
from coxcompile.gpu_analysis.occupancy import Occupancy, occupancy
from coxcompile.gpu_analysis.shared_memory import (
    asynchronous_copies,
    shared_traffic_bytes,
    spill_bytes,
)
from coxcompile.gpu_analysis.targets import Target

_RESOURCES = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+)")


class DisassemblyError(RuntimeError):
    """A tool of the Triton wheel failed, or wrote what is not understood; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a kernel takes of a multiprocessor.

    Attributes:
        warps: of a CTA.
        registers: of a thread; on AMD vector registers, accumulators included.
        stack_bytes: of a thread. For Triton's kernels not 0 if and only if registers spill.
        shared_bytes: of a CTA.
        tensor_memory_columns: of a CTA.
        occupancy: CTAs a multiprocessor and what limits them.
    """

    warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    tensor_memory_columns: int
    occupancy: Occupancy


@dataclass(frozen=True, kw_only=True)
class MachineCode:
    """What the whole kernel and its innermost loop that multiplies matrices hold.

    Attributes:
        spill_bytes: see :func:`~coxcompile.gpu_analysis.shared_memory.spill_bytes`.
        asynchronous_copies: instructions by mnemonic, in the whole kernel.
        matrix: matrix instructions of one pass of the loop.
        loop_instructions: of one pass of the loop, each run by every warp.
        loop_shared_bytes: that one pass moves from and to shared memory, all warps together, bulk
            copies left out.
    """

    spill_bytes: int
    asynchronous_copies: Mapping[str, int]
    matrix: MatrixWork
    loop_instructions: int
    loop_shared_bytes: int


def resources(kernel: Any, target: Target) -> Resources:
    """Of a ``triton.compiler.CompiledKernel``; takes milliseconds.

    Raises:
        DisassemblyError: cuobjdump failed.
    """
    if target.is_amd:
        registers = _amdgcn_metadata(kernel, "vgpr_count")
        stack_bytes = _amdgcn_metadata(kernel, "private_segment_fixed_size")
    else:
        output = _run([knobs.nvidia.cuobjdump.path, "-res-usage"], kernel.asm["cubin"])
        match = _RESOURCES.search(output)
        if match is None:
            raise DisassemblyError(f"cuobjdump -res-usage of {kernel.name} gave {output!r}")
        registers, stack_bytes = int(match["registers"]), int(match["stack"])
    warps, shared_bytes = kernel.metadata.num_warps, kernel.metadata.shared
    columns = getattr(kernel.metadata, "tmem_size", None) or 0
    return Resources(
        warps=warps,
        registers=registers,
        stack_bytes=stack_bytes,
        shared_bytes=shared_bytes,
        tensor_memory_columns=columns,
        occupancy=occupancy(
            target,
            warps=warps,
            registers=registers,
            shared_bytes=shared_bytes,
            tensor_memory_columns=columns,
        ),
    )


def machine_code(kernel: Any, target: Target) -> MachineCode:
    """Of a ``triton.compiler.CompiledKernel``; takes a fifth of a second.

    Raises:
        DisassemblyError: nvdisasm failed.
    """
    shape, listing = None, _listing(kernel, target)
    if target.mma == "tensor memory":
        shape = tensor_memory_shape(kernel.asm["ptx"])
    loop = listing.innermost_loop(is_matrix_instruction)
    warps = kernel.metadata.num_warps
    matrix = matrix_work(loop, warps, shape)
    return MachineCode(
        spill_bytes=spill_bytes(listing.instructions),
        asynchronous_copies=asynchronous_copies(listing.instructions),
        matrix=matrix,
        loop_instructions=len(loop),
        loop_shared_bytes=matrix.shared_bytes + shared_traffic_bytes(loop, warps, target.warp_size),
    )


def _listing(kernel: Any, target: Target) -> Listing:
    if target.is_amd:
        return amdgcn(kernel.asm["amdgcn"])
    # Its data flow analysis names the targets of indirect branches, of which there are none.
    return sass(_run([knobs.nvidia.nvdisasm.path, "-c", "-ndf"], kernel.asm["cubin"]))


def _amdgcn_metadata(kernel: Any, name: str) -> int:
    match = re.search(rf"\.{name}:\s+(\d+)", kernel.asm["amdgcn"])
    if match is None:
        raise DisassemblyError(f"the assembly of {kernel.name} has no .{name}")
    return int(match[1])


def _run(tool: list[str], cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [*tool, file.name]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise DisassemblyError(f"{' '.join(command)} failed: {finished.stderr.strip()}")
    return finished.stdout
