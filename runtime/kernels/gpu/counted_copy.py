"""The kernel of ``row_copies.py``."""

import triton
import triton.language as tl


@triton.jit
def copy_counted(destination, source, count, row_elements, BLOCK: tl.constexpr):
    """Copy count[0] * row_elements elements of ``source`` to the address ``destination``."""
    elements = tl.load(count) * row_elements
    to = destination.to(tl.pointer_type(source.dtype.element_ty))
    for first in tl.range(tl.program_id(0) * BLOCK, elements, tl.num_programs(0) * BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < elements
        tl.store(to + at, tl.load(source + at, mask=inside), mask=inside)
