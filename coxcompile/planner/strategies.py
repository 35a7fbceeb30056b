"""What stratification is compared with: placing at random, sampling at random, probing all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coxcompile.planner.activation_map import ActivationMap
from coxcompile.planner.counting_model import CountingModel
from coxcompile.planner.probing import ProbeSettings, probe
from coxcompile.planner.sequences import token_sequences
from coxcompile.planner.stratification import prototype_count


def random_placement(
    layers: Sequence[str], experts: int, *, model: str = "", seed: int = 0
) -> ActivationMap:
    """Each layer's experts in a uniformly random order; nothing is probed.

    Args:
        layers: for each MoE layer the path of its experts.
        experts: of a layer.
        model: name of the model.
        seed: of the order.

    Returns:
        A map of 0 tokens whose counts are ranks, so that ``hottest(n)`` are n random experts.
    """
    generator = np.random.default_rng(seed)
    ranks = np.stack([generator.permutation(experts) for _ in layers])
    return ActivationMap(
        counts=ranks,
        layers=tuple(layers),
        model=model,
        tokens=0,
        strategy="random placement",
        seed=seed,
    )


def random_sample(
    model: torch.nn.Module | CountingModel,
    dataset: Sequence[Any],
    *,
    fraction: float = 0.05,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
    resume: Path | None = None,
) -> ActivationMap:
    """Count expert choices on as many inputs as :func:`stratify`, drawn uniformly at random.

    Arguments, result and errors as there.
    """
    settings = ProbeSettings(batch_size=batch_size, progress=progress, resume=resume)
    sequences = token_sequences(dataset)
    count = prototype_count(fraction, len(sequences))
    generator = np.random.default_rng(seed)
    return probe(
        model,
        sequences,
        lambda: np.sort(generator.choice(len(sequences), count, replace=False)),
        strategy="random sample",
        seed=seed,
        settings=settings,
        arguments={"fraction": str(fraction)},
    )


def full_pass(
    model: torch.nn.Module | CountingModel,
    dataset: Sequence[Any],
    *,
    batch_size: int = 32,
    progress: bool = True,
    resume: Path | None = None,
) -> ActivationMap:
    """Count expert choices on every input: the most that any strategy can know.

    Arguments, result and errors as in :func:`stratify`.
    """
    settings = ProbeSettings(batch_size=batch_size, progress=progress, resume=resume)
    sequences = token_sequences(dataset)
    return probe(
        model,
        sequences,
        lambda: np.arange(len(sequences)),
        strategy="full pass",
        seed=None,
        settings=settings,
        arguments={},
    )
