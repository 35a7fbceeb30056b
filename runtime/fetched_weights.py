"""Pinned memory and device buffers through which weights reach the accelerator."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from coxcompile.runtime import instructions
from coxcompile.runtime.accelerator import Accelerator
from coxcompile.runtime.buffers import ALIGNMENT, packed_bytes
from coxcompile.runtime.expert_store import ExpertStore


class FetchedWeights:
    """The places of pinned memory and the buffers of a graph; made when they are first used."""

    def __init__(
        self, accelerator: Accelerator, graph_module: GraphModule, store: ExpertStore
    ) -> None:
        self._accelerator = accelerator
        self._store = store
        fetches = graph_module.graph.find_nodes(
            op="call_function", target=instructions.fetch_weights
        )
        self._fetch_bytes = max((packed_bytes(f.meta["val"]) for f in fetches), default=0)
        self._buffer_bytes: dict[int, int] = {}
        for fetch in fetches:
            size = packed_bytes(fetch.meta["val"])
            self._buffer_bytes[fetch.args[1]] = max(self._buffer_bytes.get(fetch.args[1], 0), size)
        self._places: dict[int, Tensor] = {}
        self._buffers: dict[int, Tensor] = {}

    def expert_place(self, place: int) -> list[Tensor]:
        """Pinned memory for one expert."""
        return self.place(place, self._store.slot(0))

    def place(self, place: int, likes: Sequence[Tensor]) -> list[Tensor]:
        """Pinned memory for tensors like these, one after the other."""
        if place not in self._places:
            experts = packed_bytes(tuple(self._store.slot(0))) if self._store.layers else 0
            size = max(self._fetch_bytes, experts)
            with torch.inference_mode(False):
                self._places[place] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return _divide(self._places[place], likes)

    def weights_buffer(self, buffer: int, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The same on the accelerator."""
        if buffer not in self._buffers:
            with torch.inference_mode(False):
                self._buffers[buffer] = torch.empty(
                    self._buffer_bytes[buffer], dtype=torch.uint8, device=self._accelerator.device
                )
        return _divide(self._buffers[buffer], parameters)

    def release(self) -> None:
        """Give the accelerator's memory back."""
        self._buffers.clear()


def _divide(memory: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    places, begin = [], 0
    for like in likes:
        part = memory[begin : begin + like.nbytes].view(like.dtype)
        places.append(part.as_strided(like.shape, torch.empty_like(like, device="meta").stride()))
        begin += -(-like.nbytes // ALIGNMENT) * ALIGNMENT
    return places
