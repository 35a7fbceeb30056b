"""Expert-aware stratification: which experts a workload needs, from a few of its inputs (§4.3)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coxcompile.planner.activation_map import ActivationMap
from coxcompile.planner.counting_model import CountingModel
from coxcompile.planner.embedding import Embed, checked_embeddings, mean_pooled_token_embeddings
from coxcompile.planner.probing import ProbeSettings, probe
from coxcompile.planner.prototypes import choose_prototypes
from coxcompile.planner.sequences import token_sequences


def stratify(
    model: torch.nn.Module | CountingModel,
    dataset: Sequence[Any],
    *,
    fraction: float = 0.05,
    clusters: int | None = None,
    batch_size: int = 32,
    embed: Embed | None = None,
    seed: int = 0,
    progress: bool = True,
    resume: Path | None = None,
) -> ActivationMap:
    """Count expert choices on prototypes that stand for the whole dataset (paper §4.3).

    Every input is embedded, the inputs are clustered, each cluster gives prototypes in proportion
    to its size, the ones nearest its centre, and only these run through the model: their prefill,
    compiled with ``backend="coxmoe"``, counts which experts are chosen. No padding is counted.

    Args:
        model: a decoder that the backend recognises, in eval mode; or a CountingModel, so that
            several calls compile it once.
        dataset: inputs as tensors or lists of token ids ([tokens], of any lengths), or as dicts
            with ``input_ids`` and perhaps ``attention_mask``.
        fraction: share of the inputs that is probed, in (0, 1]; rounded down, but one input at
            least.
        clusters: number of clusters, in [1, inputs]; None: √(inputs / 2), at most one a prototype.
        batch_size: inputs of equal length that are probed at once, at most.
        embed: from a list of inputs (int64 [tokens] each) to vectors [inputs, D]; None: the mean of
            the model's token embeddings.
        seed: of the clustering. The same arguments give the same map.
        progress: show a progress bar on stderr.
        resume: a file for the state, saved after each batch: a later call with the same arguments
            continues from there and gives the same map.

    Raises:
        ValueError: an argument is wrong, no MoE block is recognised, or ``resume`` was saved with
            other arguments.
    """
    settings = ProbeSettings(batch_size=batch_size, progress=progress, resume=resume)
    sequences = token_sequences(dataset)
    count = prototype_count(fraction, len(sequences))
    clusters = _clusters(clusters, len(sequences), count)
    module = model.model if isinstance(model, CountingModel) else model

    def choose() -> np.ndarray:
        if embed is None:
            vectors = mean_pooled_token_embeddings(module, sequences)
        else:
            vectors = checked_embeddings(embed, sequences)
        return choose_prototypes(vectors, count, clusters=clusters, seed=seed)

    return probe(
        model,
        sequences,
        choose,
        strategy="stratification",
        seed=seed,
        settings=settings,
        arguments={
            "fraction": str(fraction),
            "clusters": str(clusters),
            "embed": _name(embed),
        },
    )


def prototype_count(fraction: float, inputs: int) -> int:
    """How many of ``inputs`` inputs the share ``fraction`` is: never more, but one at least.

    Raises:
        ValueError: ``fraction`` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}, but must lie in (0, 1]")
    return max(1, math.floor(fraction * inputs + 1e-9))  # 0.29 * 100 is 28.999…


def _clusters(clusters: int | None, inputs: int, prototypes: int) -> int:
    if clusters is None:
        return max(1, min(prototypes, round(math.sqrt(inputs / 2))))
    if not 1 <= clusters <= inputs:
        raise ValueError(f"clusters is {clusters}, but must lie in [1, {inputs} inputs]")
    return clusters


def _name(embed: Embed | None) -> str:
    if embed is None:
        return "mean-pooled token embeddings"
    named = embed if hasattr(embed, "__qualname__") else type(embed)
    return f"{named.__module__}.{named.__qualname__}"
