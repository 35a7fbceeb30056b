"""Inputs for examples/tiny_moe that it was not trained on: domains of unequal size, ragged."""

import sys
from pathlib import Path

import numpy as np
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
LENGTHS = (64, 128, 192, 256)


def held_out_dataset(inputs: int, seed: int) -> tuple[list[torch.Tensor], dict[str, int]]:
    """Inputs in random order, and how many each domain has: the r-th in proportion to 1/r.

    Each domain has as many of each of LENGTHS tokens.
    """
    sys.path.insert(0, str(EXAMPLES))
    from local_text import domains, sample

    names = list(domains())
    ranks = np.arange(1, len(names) + 1)
    sizes = dict(zip(names, np.ceil(inputs / ranks / (1 / ranks).sum()).astype(int), strict=True))
    generator = torch.Generator().manual_seed(seed)
    dataset = []
    for name, size in sizes.items():
        for length, part in zip(
            LENGTHS, np.array_split(np.arange(size), len(LENGTHS)), strict=True
        ):
            if len(part):
                dataset += list(sample(name, "held-out", len(part), length, generator))
    order = torch.randperm(len(dataset), generator=generator).tolist()
    return [dataset[i] for i in order[:inputs]], {name: int(size) for name, size in sizes.items()}
