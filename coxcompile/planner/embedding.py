"""One vector an input, for clustering (paper §4.3)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

Embed = Callable[[list[torch.Tensor]], np.ndarray]
"""Inputs (int64 [tokens] each, N of them) to vectors [N, D]."""


def mean_pooled_token_embeddings(
    model: torch.nn.Module, sequences: Sequence[torch.Tensor]
) -> np.ndarray:
    """The mean of each input's token embeddings, float32 [inputs, model dimension].

    Raises:
        ValueError: ``model`` does not say which module embeds its tokens.
    """
    get_input_embeddings = getattr(model, "get_input_embeddings", None)
    table = getattr(get_input_embeddings() if get_input_embeddings else None, "weight", None)
    if table is None:
        raise ValueError(
            f"{type(model).__name__} has no get_input_embeddings() with a weight; pass embed=, a "
            "function from a list of inputs to an array [inputs, D]"
        )
    with torch.inference_mode():
        means = [table[sequence.to(table.device)].float().mean(0) for sequence in sequences]
        return torch.stack(means).cpu().numpy()


def checked_embeddings(embed: Embed, sequences: list[torch.Tensor]) -> np.ndarray:
    """What a user's ``embed`` gives, as float32 [inputs, D].

    Raises:
        ValueError: it is no finite array with one row an input.
    """
    vectors = np.asarray(embed(sequences), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(sequences) or not np.isfinite(vectors).all():
        raise ValueError(
            f"embed gave an array {list(vectors.shape)}, but must give finite numbers "
            f"[{len(sequences)} inputs, D]"
        )
    return vectors
