"""Counters of expert choices that compiled graphs add to while they run."""

import numpy as np
import torch


class ChoiceCounts:
    """How often each expert of each MoE layer was chosen, counted by compiled graphs themselves.

    Given as ``options={"count_choices": ChoiceCounts()}``: every graph compiled with it, for
    whatever shapes, adds to the same counters, one int64 [experts] a layer. All tokens that a graph
    sees are counted, padding too.

    Attributes:
        skipped: MoE blocks that the compiler left alone and that are therefore not counted: the
            path of each with the reason.
    """

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}
        self._counters: dict[str, torch.Tensor] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the layers counted, in the order in which they were compiled."""
        return tuple(self._counters)

    def counter(self, layer: str, experts: int, device: torch.device) -> torch.Tensor:
        """The counter of one layer, int64 [experts]; made at the first call, on ``device``.

        Raises:
            ValueError: the layer's counter has another number of experts or is on another device.
        """
        if layer not in self._counters:
            with torch.inference_mode(False):  # a graph may add to it in and outside of that mode
                self._counters[layer] = torch.zeros(experts, dtype=torch.int64, device=device)
        counter = self._counters[layer]
        if counter.shape != (experts,) or counter.device != device:
            raise ValueError(
                f"count_choices: layer {layer} has {experts} experts on {device}, but these "
                f"ChoiceCounts hold {len(counter)} on {counter.device} for it; give each model "
                "ChoiceCounts of its own"
            )
        return counter

    def to_numpy(self) -> np.ndarray:
        """A copy of all counters, int64 [layers, experts].

        Raises:
            ValueError: nothing was compiled with these counters, or layers differ in experts.
        """
        if len({len(counter) for counter in self._counters.values()}) != 1:
            sizes = ", ".join(f"{layer}: {len(c)}" for layer, c in self._counters.items())
            raise ValueError(
                "count_choices: all layers must have the same number of experts, but there are "
                f"{sizes or 'no layers; compile and call a model with MoE blocks first'}"
            )
        return torch.stack([counter.cpu() for counter in self._counters.values()]).numpy()

    def reset(self) -> None:
        """Start again from zero; graphs compiled with these counters stay valid."""
        for counter in self._counters.values():
            counter.zero_()
