"""Prefill of selected inputs through the compiled model, which counts expert choices (§4.3)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from coxcompile.planner.activation_map import ActivationMap
from coxcompile.planner.counting_model import CountingModel
from coxcompile.planner.probe_state import ProbeState, weights_digest
from coxcompile.planner.sequences import digest


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """What all strategies take.

    Attributes:
        batch_size: inputs of equal length that are probed at once, at most.
        progress: show a progress bar on stderr.
        resume: a file for the state, saved after each batch: a later call with the same arguments
            continues from there. None saves nothing.
    """

    batch_size: int = 32
    progress: bool = True
    resume: Path | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, but must be 1 or more")
        if self.resume is not None and not self.resume.parent.is_dir():
            raise ValueError(
                f"resume is {self.resume}, but {self.resume.parent} is no directory; make it first"
            )


def probe(
    model: torch.nn.Module | CountingModel,
    sequences: Sequence[torch.Tensor],
    choose: Callable[[], np.ndarray],
    *,
    strategy: str,
    seed: int | None,
    settings: ProbeSettings,
    arguments: Mapping[str, str],
) -> ActivationMap:
    """Count the expert choices of the inputs whose positions ``choose`` returns.

    Padding would be counted like any token, so there is none: inputs of one length are batched
    together, and a length that only one input has is a batch of one.

    Args:
        model: compiled here unless it is a CountingModel already.
        sequences: all inputs, int64 [tokens] each.
        choose: called unless a state is resumed, which holds its answer.
        strategy: for the map.
        seed: for the map.
        settings: see there.
        arguments: what else the result depends on, by name, as text; a resumed state must agree.
    """
    counting = model if isinstance(model, CountingModel) else CountingModel(model)
    arguments = {"strategy": strategy, "seed": str(seed), **arguments}
    state = _start(counting, sequences, choose, settings, arguments)
    batches = list(equal_length_batches(sequences, state.inputs, settings.batch_size))
    tokens = [sum(len(sequences[i]) for i in batch) for batch in batches]
    with _progress_bar(strategy, tokens, state.batches, settings.progress) as advance:
        for batch in batches[state.batches :]:
            counts = counting.count(torch.stack([sequences[i] for i in batch]))
            state = replace(
                state,
                counts=counts + state.counts if state.batches else counts,
                layers=counting.layers,
                batches=state.batches + 1,
            )
            if settings.resume is not None:
                state.save(settings.resume, arguments)
            advance()
    return ActivationMap(
        counts=state.counts,
        layers=state.layers,
        model=counting.name,
        tokens=sum(tokens),
        strategy=strategy,
        seed=seed,
    )


def equal_length_batches(
    sequences: Sequence[torch.Tensor], inputs: Iterable[int], batch_size: int
) -> Iterator[list[int]]:
    """The positions ``inputs`` in batches of equal length, short inputs first."""
    by_length: dict[int, list[int]] = {}
    for position in inputs:
        by_length.setdefault(len(sequences[position]), []).append(int(position))
    for _, positions in sorted(by_length.items()):
        for start in range(0, len(positions), batch_size):
            yield positions[start : start + batch_size]


def _start(
    counting: CountingModel,
    sequences: Sequence[torch.Tensor],
    choose: Callable[[], np.ndarray],
    settings: ProbeSettings,
    arguments: dict[str, str],
) -> ProbeState:
    empty = np.zeros((0, 0), dtype=np.int64)
    if settings.resume is None:
        return ProbeState(inputs=choose(), counts=empty)
    arguments |= {
        "model": counting.name,
        "weights": weights_digest(counting.model),
        "dataset": f"{len(sequences)} inputs ({digest(sequences)})",
        "batch_size": str(settings.batch_size),
    }
    if settings.resume.exists():
        return ProbeState.load(settings.resume, arguments)
    state = ProbeState(inputs=choose(), counts=empty)
    state.save(settings.resume, arguments)
    return state


@contextmanager
def _progress_bar(
    title: str, tokens: Sequence[int], done: int, shown: bool
) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import Progress

    remaining = iter(tokens[done:])
    with Progress(console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(title, total=sum(tokens), completed=sum(tokens[:done]))
        yield lambda: bar.advance(task, next(remaining))
