"""The transfer engine: values on their way between host and accelerator, through pinned memory."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from coxcompile.runtime import instructions
from coxcompile.runtime.accelerator import Accelerator
from coxcompile.runtime.values import Step, Values, empty_like, fill_with_zeros


class Transfers:
    """Carries out ``transfer_start`` and ``transfer_rows_start``.

    A transfer has pinned memory of its own, which it uses in every call; what the call returns is
    in new memory each time, so that the next call leaves it alone.
    """

    def __init__(self, accelerator: Accelerator, graph: Graph) -> None:
        self._accelerator = accelerator
        self._pinned: dict[Node, Any] = {}
        self._returned = set(_returned(graph))

    @property
    def steps(self) -> dict[Any, Step]:
        """By instruction."""
        return {
            instructions.transfer_start: self._transfer,
            instructions.transfer_rows_start: self._transfer_rows,
        }

    def _transfer(self, node: Node, values: Values) -> None:
        source = values[node.args[0]]  # type: ignore[index]
        value = node.meta["val"]
        if node.args[1] == "cpu":
            destination = self._pinned_for(node, value)
        else:
            destination = empty_like(value, self._accelerator.device)
            if node.meta["may_be_empty"] and _is_zero(source):
                self._accelerator.launch(fill_with_zeros, [destination], node.name)
                values[node] = destination
                return
            pinned = self._pinned_for(node, value)
            source = pinned.copy_(source)
        self._accelerator.copy([(destination, source)], node.name)
        values[node] = destination

    def _transfer_rows(self, node: Node, values: Values) -> None:
        rows = values[node.args[0]]  # type: ignore[index]
        if node.args[1] == "cpu":
            count, _, *packed = rows
            pinned_count, _, *pinned = self._pinned_for(node, node.meta["val"])
            pairs = list(zip(pinned, packed, strict=True))
            self._accelerator.copy_rows(pairs, count, [(pinned_count, count)], node.name)
            values[node] = (pinned_count, *pinned)
            return
        results, count = rows
        pinned = self._pinned_for(node, node.meta["val"])
        pinned[: len(results)] = results
        destination = empty_like(node.meta["val"], self._accelerator.device)
        self._accelerator.copy_rows([(destination, pinned)], count, [], node.name)
        values[node] = destination

    def _pinned_for(self, node: Node, value: Any) -> Any:
        """Memory of a transfer's own."""
        if node in self._pinned:
            return self._pinned[node]
        if isinstance(value, tuple):
            pinned: Any = tuple(self._accelerator.pinned(part) for part in value)
        else:
            pinned = self._accelerator.pinned(value)
        if node not in self._returned:
            self._pinned[node] = pinned
        return pinned


def _returned(graph: Graph) -> Iterator[Node]:
    """The nodes whose memory a result of the call may be in."""
    found: set[Node] = set()
    ahead = [graph.output_node()]
    while ahead:
        node = ahead.pop()
        if node not in found and node.target is not instructions.transfer_start:
            ahead += node.all_input_nodes
        found.add(node)
    yield from found


def _is_zero(cache: Tensor) -> bool:
    """Looks at the first position first, which every cache in use has filled."""
    return cache.dim() > 2 and not (cache[..., :1, :].any() or cache.any())
