"""Which sequences are computed together: micro-batches and blocks."""

from dataclasses import dataclass

import torch

from coxcompile.passes.batch_rules.call import CannotDivide


@dataclass(frozen=True)
class Span:
    """Sequences ``start`` to ``stop`` (exclusive): a micro-batch, a block, or all of them.

    Attributes:
        block: number of the block it is or lies in; None if it is all of them.
        micro_batch: its number among those of all blocks; None if it is a block or all of them.
    """

    start: int
    stop: int
    block: int | None = None
    micro_batch: int | None = None

    def holds(self, other: "Span") -> bool:
        """Whether all of ``other``'s sequences are among its own."""
        return self.start <= other.start and other.stop <= self.stop

    def meta(self) -> dict[str, int]:
        """What a node that computes this span has in its ``meta``."""
        numbers = {"block": self.block, "micro_batch": self.micro_batch}
        return {name: number for name, number in numbers.items() if number is not None}


def spans(
    sequences: int | torch.SymInt, block: int, micro_batch: int
) -> tuple[list[Span], list[Span]]:
    """The micro-batches, none of which straddles two blocks, and the blocks they lie in.

    Raises:
        CannotDivide: ``sequences`` is symbolic.
    """
    if not isinstance(sequences, int):
        raise CannotDivide(f"its batch is of symbolic size {sequences}; compile for a fixed one")
    micro_batches: list[Span] = []
    blocks: list[Span] = []
    for start in range(0, sequences, block):
        stop = min(start + block, sequences)
        blocks.append(Span(start, stop, len(blocks)))
        for first in range(start, stop, micro_batch):
            last = min(first + micro_batch, stop)
            micro_batches.append(Span(first, last, len(blocks) - 1, len(micro_batches)))
    return micro_batches, blocks
