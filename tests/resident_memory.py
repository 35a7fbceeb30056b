"""Run a layer of some 200 MB in this process and print what its memory and its weights do.

``python -m tests.resident_memory LAYER``; prints one line of JSON, a :class:`Report`.
"""

import json
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from numerics import random_routing

import coxcompile.ops  # noqa: F401  (registers the op)

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 1024, 1024, 32, 2
TOKENS = (1, 8, 64, 600)
Weights = tuple[torch.Tensor, ...]
Call = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Report:
    """Sizes in bytes. Growth is since the weights were made."""

    weights: int
    kept: list[int]
    """Growth of private memory after each number of tokens in :data:`TOKENS`."""
    peak: int
    """Growth of resident memory, files' pages included, at its highest."""
    checksum_before: int
    checksum_after: int


def status(field: str) -> int:
    """A size of this process's, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def weights(hidden: int, intermediate: int, transposed: bool) -> Weights:
    shapes = [(2 * intermediate, hidden), (hidden, intermediate)]
    return tuple(
        torch.empty(EXPERTS, *(s[::-1] if transposed else s), dtype=torch.bfloat16).uniform_(-1, 1)
        for s in shapes
    )


def stacked(hidden_states: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
    return torch.ops.coxmoe.coalesced_experts(hidden_states, *arguments)


def transposed(hidden_states: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
    return torch.ops.coxmoe.coalesced_experts(hidden_states, *arguments, transposed=True)


def separate(
    hidden_states: torch.Tensor,
    ids: torch.Tensor,
    routing_weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=1)
    lists = [list(stack.unbind()) for stack in (gate, up, down)]
    return torch.ops.coxmoe.coalesced_experts.separate(hidden_states, ids, routing_weights, *lists)


def copying(hidden_states: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
    """What the others must not do: copies last as long as the call."""
    return stacked(hidden_states, *(argument.clone() for argument in arguments))


LAYERS: dict[str, Call] = {
    "stacked": stacked,
    "transposed": transposed,
    "separate": separate,
    "copying": copying,
}


def run(call: Call, tokens: int, layer: Weights, hidden: int) -> None:
    ids, routing_weights = random_routing(tokens, EXPERTS, TOP_K, "skewed")
    call(torch.randn(tokens, hidden).bfloat16(), ids, routing_weights, *layer)


def checksum(layer: Weights) -> int:
    total = 0
    for stack in layer:
        total = zlib.crc32(stack.view(torch.uint8).numpy(), total)
    return total


def main(name: str) -> Report:
    call, columns = LAYERS[name], name == "transposed"
    small = weights(64, 64, columns)
    for tokens in TOKENS:  # loads libraries, starts threads
        run(call, tokens, small, 64)
    layer = weights(HIDDEN, INTERMEDIATE, columns)
    before = checksum(layer)
    forget_peak()
    private, resident = status("RssAnon"), status("VmRSS")
    kept = []
    for tokens in TOKENS:
        for _ in range(2):
            run(call, tokens, layer, HIDDEN)
        kept.append(status("RssAnon") - private)
    peak = status("VmHWM") - resident
    size = sum(stack.nbytes for stack in layer)
    return Report(size, kept, peak, before, checksum(layer))


if __name__ == "__main__":
    print(json.dumps(asdict(main(sys.argv[1]))))
