"""Where each expert of a stack lies."""

import triton
import triton.language as tl


@triton.jit
def point_at_slots(addresses, expert_slots, firsts, slot_bytes, experts, BLOCK: tl.constexpr):
    """addresses[p, e] = firsts[p] + expert_slots[e] * slot_bytes[p], or 0 if the slot is negative.

    ``firsts`` and ``slot_bytes`` are tuples of integers, 0 for parts that there are none of.
    """
    expert = tl.arange(0, BLOCK)
    inside = expert < experts
    slot = tl.load(expert_slots + expert, mask=inside, other=-1)
    for part in tl.static_range(len(firsts)):
        address = firsts[part] + slot * slot_bytes[part]
        places = addresses + part * experts + expert
        tl.store(places, tl.where(slot >= 0, address, 0), mask=inside)
