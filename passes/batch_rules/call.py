"""What a rule reads and returns: a call with its arguments by name, and the call on a part of it.

A rule proves that an op on the sequences of a micro-batch gives those sequences of what the op
gives on all of them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node


class CannotDivide(Exception):
    """The op cannot be computed for some sequences alone; the message says why."""


@dataclass(frozen=True)
class Batch:
    """Where the sequences lie in a tensor.

    Attributes:
        dim: the dimension they lie in, 0 or more; its size is sequences · ``per_sequence``.
        per_sequence: elements of one sequence; they are next to each other.
    """

    dim: int
    per_sequence: int


@dataclass(frozen=True)
class Cut:
    """An operand of which a micro-batch takes its own sequences."""

    value: Node
    batch: Batch


@dataclass(frozen=True)
class Elements:
    """A size in place of which a micro-batch has its sequences · ``per_sequence``."""

    per_sequence: int


@dataclass(frozen=True)
class Divided:
    """How to call an op for some sequences.

    Attributes:
        arguments: those that change, by their name in the schema, with :class:`Cut` and
            :class:`Elements` in them; every operand that has the batch is among them.
        batch: where the sequences lie in the result, or in each of its results; None if the result
            is the same for all sequences and is computed once.
        once: what to call instead where ``batch`` is None, with all its arguments in ``arguments``,
            none of which has the batch.
    """

    arguments: Mapping[str, Any]
    batch: Batch | None
    once: OpOverload | None = None


class Call:
    """A node's call: arguments by name, and which of its operands have the batch.

    Args:
        node: calls an OpOverload.
        batches: where the batch lies, for each value that has it.
        sequences: the batch's size, 2 or more.
    """

    def __init__(self, node: Node, batches: Mapping[Node, Batch], sequences: int) -> None:
        assert isinstance(node.target, OpOverload)
        self.node = node
        self.target = node.target
        self.sequences = sequences
        self._batches = batches
        self.arguments: dict[str, Any] = {}
        for position, argument in enumerate(self.target._schema.arguments):
            if position < len(node.args):
                self.arguments[argument.name] = node.args[position]
            else:
                default = argument.default_value if argument.has_default_value() else None
                self.arguments[argument.name] = node.kwargs.get(argument.name, default)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def batch(self, value: object) -> Batch | None:
        """Where ``value`` has the batch; None if it has none."""
        return self._batches.get(value) if isinstance(value, Node) else None

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, Node]:
        """The operands that are one tensor each, of all arguments or of those named."""
        chosen = self.arguments if names is None else names
        return {name: self[name] for name in chosen if is_tensor(self[name])}

    def own(self, name: str) -> Batch:
        """The batch of the operand ``name``, which must have it."""
        batch = self.batch(self[name])
        if batch is None:
            raise CannotDivide(f"takes the batch in other operands than {name}")
        return batch

    def take(self, value: Node, batch: Batch, *, broadcasts: bool = False) -> Cut | Node:
        """A micro-batch's part of an operand that lies along ``batch``.

        Args:
            value: has the batch there, or is shared and has as many elements there.
            batch: its ``dim`` counts in ``value``; negative if ``value`` lacks the dimension.
            broadcasts: a shared value may lack the dimension or have size 1, and is taken whole.
        """
        own = self.batch(value)
        if own is not None:
            if own != batch:
                raise CannotDivide("combines sequences with each other")
            return Cut(value, batch)
        shape = shape_of(value)
        if broadcasts and (batch.dim < 0 or shape[batch.dim] == 1):
            return value
        if batch.dim >= len(shape) or shape[batch.dim] != self.sequences * batch.per_sequence:
            raise CannotDivide(f"takes {value.name} of another size than the batch's")
        return Cut(value, batch)

    def along(self, dim: int, rank: int, batch: Batch, doing: str) -> int:
        """``dim`` counted from 0 among ``rank``, which must be another than the batch's."""
        counted = dim + rank if dim < 0 else dim
        if counted == batch.dim:
            raise CannotDivide(f"{doing} along the batch (dimension {counted})")
        return counted


Rule = Callable[[Call], Divided]
RULES: dict[OpOverload, Rule] = {}
"""The rule of each op that has one of its own; pointwise ops share one."""


def rule_for(*targets: OpOverload) -> Callable[[Rule], Rule]:
    """Decorator: the rule holds for these ops."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def is_tensor(value: object) -> bool:
    """Whether ``value`` is a node whose result is one tensor."""
    return isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor)


def shape_of(value: Node) -> tuple[int, ...]:
    """A tensor's shape, which must be of numbers."""
    shape = tuple(value.meta["val"].shape)
    if not all(isinstance(size, int) for size in shape):
        raise CannotDivide(f"takes {value.name} of symbolic shape {list(shape)}")
    return shape
