"""Times the CPU kernel's loops against each other: from how many tokens on is each faster?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coxcompile.expert_thresholds import (
    expert_loops,
    restored_thresholds,
    set_thresholds,
    thresholds_in_force,
)
from coxcompile.hardware import ExpertThresholds
from coxcompile.measurement.cpu import ExpertLayer, stacked_weights
from coxcompile.measurement.device_timing import SecondsOf, Timed, interleaved_medians
from coxcompile.measurement.probe import seconds_of as host_seconds_of

COLUMN_TOKENS = (8, 12, 16, 18, 20, 22, 24, 26, 28, 32, 48)
LAST_VECTOR_TOKENS = (2, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15)
"""Beside two whole vectors."""
PANEL_TOKENS = (8, 16, 32, 48, 64, 80, 128)
ROUNDS = 5
DRAWS = 3
"""Sets of tokens that timings take in turn."""
STEPS = 3 * (ROUNDS + 1)
"""How often ``advance`` is called at most."""
LAYER = ExpertLayer(experts=64, top_k=8, hidden=2048, intermediate=768)
"""As large as Qwen3-30B-A3B's experts; 64 of them (604 MB in bfloat16) no cache holds."""


@dataclass(frozen=True)
class Candidate:
    """Thresholds to time with so many tokens for every expert."""

    tokens: int
    on: bool
    transposed: bool
    thresholds: ExpertThresholds


class LoopBench:
    """A layer of random experts in bfloat16, and tokens of which each expert gets equally many."""

    def __init__(self, layer: ExpertLayer = LAYER) -> None:
        self.layer = layer
        most = max(*COLUMN_TOKENS, 32 + max(LAST_VECTOR_TOKENS), *PANEL_TOKENS)
        rows = layer.experts * most // layer.top_k
        self._draws = [torch.randn(rows, layer.hidden).bfloat16() for _ in range(DRAWS)]
        experts, hidden, intermediate = layer.experts, layer.hidden, layer.intermediate
        self._gate_up = stacked_weights(experts, 2 * intermediate, hidden, torch.bfloat16)
        self._down = stacked_weights(experts, hidden, intermediate, torch.bfloat16)

    @torch.inference_mode()
    def run(self, candidate: Candidate, number: int) -> Tensor:
        """The layer on the tokens of round ``number``, with the candidate's thresholds set."""
        layer, transposed = self.layer, candidate.transposed
        rows = layer.experts * candidate.tokens // layer.top_k
        expert_ids = torch.arange(rows * layer.top_k).view(rows, -1) % layer.experts
        set_thresholds(candidate.thresholds)
        return torch.ops.coxmoe.coalesced_experts(  # type: ignore[no-any-return]
            self._draws[number % DRAWS][:rows],
            expert_ids,
            torch.full(expert_ids.shape, 1 / layer.top_k),
            # Random numbers are no others for being read by columns.
            self._gate_up.view(layer.experts, layer.hidden, -1) if transposed else self._gate_up,
            self._down.view(layer.experts, -1, layer.hidden) if transposed else self._down,
            transposed=transposed,
        )


def measure_thresholds(
    bench: LoopBench | None = None,
    seconds_of: SecondsOf = host_seconds_of,
    advance: Callable[[], None] = lambda: None,
) -> ExpertThresholds:
    """The thresholds for this machine: loops forced on and off, in turn, medians compared.

    Takes about 20 s on two cores, and 1 GB of memory. A loop's threshold is the least number of
    tokens from which on it is always faster. Panels are compared with what the other thresholds, by
    then chosen, make of the same tokens; of transposed weights where they are for these alone.
    Thresholds in force before are so again afterwards.

    Args:
        bench: the layer; None: LAYER.
        seconds_of: times a call.
        advance: called after each round.

    Raises:
        ValueError: this machine has one loop alone, or no C++ kernel; nothing is to be chosen.
    """
    loops = expert_loops()
    if not loops:
        raise ValueError(
            "expert_loops() is empty here, so there are no thresholds to measure: use a processor "
            "with AVX512-BF16 or AMX, and build the C++ kernels"
        )
    bench = bench or LoopBench()
    with restored_thresholds():
        chosen = replace(thresholds_in_force(), panels=0)

        def least(
            tokens: Sequence[int],
            on: ExpertThresholds,
            off: ExpertThresholds,
            transposed: bool = False,
        ) -> int | None:
            candidates = [
                Candidate(count, thresholds is on, transposed, thresholds)
                for count in tokens
                for thresholds in (on, off)
            ]
            timed = {candidate: _timed(bench, candidate) for candidate in candidates}
            return least_tokens(interleaved_medians(timed, ROUNDS, seconds_of, advance=advance))

        if "columns" in loops:
            on = replace(chosen, columns=1, last_vector=1)
            left_over = least([32 + n for n in LAST_VECTOR_TOKENS], on, replace(on, last_vector=16))
            chosen = replace(chosen, last_vector=16 if left_over is None else left_over - 32)
            on, off = replace(chosen, columns=1), replace(chosen, columns=0)
            # Fewer would be left over of no vector at all: the same on as off.
            enough = [count for count in COLUMN_TOKENS if count >= chosen.last_vector]
            chosen = replace(chosen, columns=least(enough, on, off) or 0)
        if "transposed panels" in loops:
            on, transposed = replace(chosen, panels=1), "panels" not in loops
            chosen = replace(chosen, panels=least(PANEL_TOKENS, on, chosen, transposed) or 0)
        return chosen


def least_tokens(medians: Mapping[Candidate, float]) -> int | None:
    """The least tokens from which on the loop is faster on than off, each time; None: from none."""
    seconds = {(candidate.tokens, candidate.on): value for candidate, value in medians.items()}
    least = None
    for tokens in sorted({candidate.tokens for candidate in medians}, reverse=True):
        if seconds[tokens, True] >= seconds[tokens, False]:
            break
        least = tokens
    return least


def _timed(bench: LoopBench, candidate: Candidate) -> Timed:
    return lambda number: bench.run(candidate, number)
