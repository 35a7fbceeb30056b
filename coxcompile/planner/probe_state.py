"""What an interrupted probe has to know to continue: a file saved after each batch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from coxcompile.planner.array_files import load_arrays, save_arrays


@dataclass(frozen=True, kw_only=True)
class _Progress:
    arguments: dict[str, str]
    layers: tuple[str, ...]
    batches: int


@dataclass(frozen=True, kw_only=True)
class ProbeState:
    """A probe after some of its batches.

    Attributes:
        inputs: positions of the inputs that are probed, int64 [probed inputs].
        batches: how many batches are counted.
        counts: of those batches, int64 [layers, experts]; [0, 0] before the first.
        layers: for each layer the path of its experts; empty before the first batch.
    """

    inputs: np.ndarray
    batches: int = 0
    counts: np.ndarray
    layers: tuple[str, ...] = ()

    def save(self, path: Path, arguments: Mapping[str, str]) -> None:
        """Write the state, with the arguments that it is only valid for."""
        progress = _Progress(arguments=dict(arguments), layers=self.layers, batches=self.batches)
        save_arrays(path, {"inputs": self.inputs, "counts": self.counts}, progress)

    @staticmethod
    def load(path: Path, arguments: Mapping[str, str]) -> "ProbeState":
        """Read a state that was saved with the same arguments.

        Raises:
            ValueError: the file is of another kind, or was saved with other arguments; the message
                names those that differ.
        """
        arrays, progress = load_arrays(path, _Progress)
        saved = progress.arguments
        differing = [
            f"{name} was {saved.get(name, 'not there')} and is {arguments.get(name, 'not there')}"
            for name in sorted({*saved, *arguments})
            if saved.get(name) != arguments.get(name)
        ]
        if differing:
            raise ValueError(
                f"{path} cannot be resumed with other arguments: {'; '.join(differing)}. Pass the "
                "former ones, or another file, or delete this one"
            )
        return ProbeState(
            inputs=arrays["inputs"],
            batches=progress.batches,
            counts=arrays["counts"],
            layers=progress.layers,
        )


def weights_digest(model: torch.nn.Module) -> str:
    """A hash of names, shapes and first values of all parameters: cheap, and tells models apart."""
    hashed = hashlib.sha256()
    for name, parameter in model.named_parameters():
        start = parameter.detach().reshape(-1)[:256].float().cpu()
        hashed.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
        hashed.update(start.numpy().tobytes())
    return hashed.hexdigest()[:16]
