"""How often each expert of each layer is chosen: what decides which experts are resident."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coxcompile.planner.array_files import load_arrays, save_arrays


@dataclass(frozen=True, kw_only=True)
class _Metadata:
    """What the header of an activation map's file says beside the counts."""

    layers: tuple[str, ...]
    model: str
    tokens: int
    strategy: str
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationMap:
    """Counts of expert choices, and where they are from (paper §4.3).

    Attributes:
        counts: int64 [layers, experts]: of the tokens probed, how many chose the expert. MoE layers
            only, from the first on; read-only.
        layers: for each layer the path of its experts in the model.
        model: the model's name.
        tokens: number of tokens probed; 0 where nothing was (random placement), and then the counts
            say only in which order experts become resident.
        strategy: how the tokens were selected: "stratification", "random sample", "full pass", ….
        seed: of that selection; None where it has no random part.
    """

    counts: np.ndarray
    layers: tuple[str, ...]
    model: str
    tokens: int
    strategy: str
    seed: int | None = None

    def __post_init__(self) -> None:
        counts = np.array(self.counts)
        if counts.ndim != 2 or not counts.size or counts.dtype.kind not in "iu":
            raise ValueError(
                f"counts is {counts.dtype} {list(counts.shape)}, but must be integers [layers, "
                "experts], at least one of each"
            )
        if counts.min() < 0:
            raise ValueError(f"counts holds {counts.min()}, but counts must be 0 or more")
        if len(self.layers) != len(counts):
            raise ValueError(f"layers has {len(self.layers)} names, but counts {len(counts)} rows")
        if self.tokens < 0:
            raise ValueError(f"tokens is {self.tokens}, but must be 0 or more")
        counts = counts.astype(np.int64)
        counts.setflags(write=False)
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "layers", tuple(self.layers))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ActivationMap)
            and self._metadata() == other._metadata()
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def experts(self) -> int:
        """Experts of a layer (E)."""
        return int(self.counts.shape[1])

    def hottest(self, resident: int | Sequence[int]) -> list[np.ndarray]:
        """For each layer the ids of its ``resident`` most chosen experts, int64, hottest first.

        Args:
            resident: a number of experts, in [0, E], for all layers or one for each. Of experts
                chosen equally often those with the smaller ids come first.
        """
        order = np.argsort(-self.counts, axis=1, kind="stable")
        numbers = self._numbers(resident)
        return [row[:number] for row, number in zip(order, numbers, strict=True)]

    def hit_ratio(self, resident: int | Sequence[int]) -> float:
        """The share of expert choices that fall on each layer's ``resident`` hottest experts.

        A mean over layers, weighted by their choices: hits of all layers / choices of all layers.
        On the data that the map itself was made from; see :meth:`hit_ratio_of` for other data.
        """
        return self.hit_ratio_of(self, resident)

    def hit_ratio_of(self, placement: "ActivationMap", resident: int | Sequence[int]) -> float:
        """The hit ratio on this map's choices of the experts that ``placement`` calls hottest.

        This map is the judge: made from the full data, or from held-out data.

        Raises:
            ValueError: the maps are of different layers or numbers of experts, or no choice was
                counted.
        """
        self._require_same_experts(placement)
        choices = int(self.counts.sum())
        if not choices:
            raise ValueError("the map counts no choice, so there is no share of hits")
        placed = placement.hottest(resident)
        hits = sum(int(row[ids].sum()) for row, ids in zip(self.counts, placed, strict=True))
        return hits / choices

    def probabilities(self) -> np.ndarray:
        """The share of tokens that choose each expert, float64 [layers, experts].

        Sums to top_k in each layer: t_e of the cost model (paper §4.1) is B·s times it.

        Raises:
            ValueError: no tokens were probed.
        """
        if not self.tokens:
            raise ValueError(f"no tokens were probed ({self.strategy}), so there are no shares")
        return self.counts / self.tokens

    def entropy(self) -> np.ndarray:
        """Entropy of each layer's choices over log E, float64 [layers].

        1: all experts are chosen equally often. 0: one expert gets all choices.
        """
        shares = self._shares()
        logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        bits = -(shares * logarithms).sum(axis=1)
        return (
            np.clip(bits / np.log(self.experts), 0, 1) if self.experts > 1 else np.ones(len(bits))
        )

    def drift(self, other: "ActivationMap") -> float:
        """How far the choices have moved: 0 for the same distribution, 1 for disjoint experts.

        The total-variation distance ½ Σ_e |p_e - q_e| between the two maps' distributions of
        choices over a layer's experts, as a mean over layers. It bounds what a placement can lose:
        the hit ratio of any set of experts in a layer differs by no more between the two.

        Raises:
            ValueError: the maps are of different layers or numbers of experts.
        """
        self._require_same_experts(other)
        return float(np.abs(self._shares() - other._shares()).sum(axis=1).mean() / 2)

    def merge(self, other: "ActivationMap") -> "ActivationMap":
        """The map of both maps' tokens together.

        Raises:
            ValueError: the maps are of different layers or numbers of experts, or of no tokens.
        """
        self._require_same_experts(other)
        for one in (self, other):
            if not one.tokens:
                raise ValueError(
                    f"no tokens were probed for the map of {one.strategy}, so its counts cannot be "
                    "added to others"
                )
        return ActivationMap(
            counts=self.counts + other.counts,
            layers=self.layers,
            model=_both(self.model, other.model),
            tokens=self.tokens + other.tokens,
            strategy=_both(self.strategy, other.strategy),
            seed=self.seed if self.seed == other.seed else None,
        )

    def save(self, path: Path) -> None:
        """Write a safetensors file: ``counts``, and everything else as JSON in its metadata."""
        save_arrays(path, {"counts": self.counts}, self._metadata())

    @staticmethod
    def load(path: Path) -> "ActivationMap":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is missing or no activation map; the message names it.
        """
        try:
            arrays, metadata = load_arrays(path, _Metadata)
            return ActivationMap(counts=arrays["counts"], **vars(metadata))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is no activation map ({error}); write one with "
                "coxcompile.stratify(...).save(path)"
            ) from None

    def _metadata(self) -> _Metadata:
        return _Metadata(
            layers=self.layers,
            model=self.model,
            tokens=self.tokens,
            strategy=self.strategy,
            seed=self.seed,
        )

    def _shares(self) -> np.ndarray:
        """Each layer's distribution of choices; uniform where nothing was counted."""
        choices = self.counts.sum(axis=1, keepdims=True)
        uniform = np.full(self.counts.shape, 1 / self.experts)
        shares: np.ndarray = np.divide(self.counts, choices, out=uniform, where=choices > 0)
        return shares

    def _numbers(self, resident: int | Sequence[int]) -> list[int]:
        layers = len(self.layers)
        numbers = [resident] * layers if isinstance(resident, int) else list(resident)
        if len(numbers) != layers:
            raise ValueError(f"resident has {len(numbers)} numbers, but there are {layers} layers")
        for number in numbers:
            if not 0 <= number <= self.experts:
                raise ValueError(f"resident is {number}, but must lie in [0, {self.experts}]")
        return numbers

    def _require_same_experts(self, other: "ActivationMap") -> None:
        if self.counts.shape != other.counts.shape or self.layers != other.layers:
            raise ValueError(
                f"the maps are of different models: {self.model}, {list(self.counts.shape)} from "
                f"{self.layers[0]} on, and {other.model}, {list(other.counts.shape)} from "
                f"{other.layers[0]} on [layers, experts]; make both from the same model"
            )


def _both(one: str, other: str) -> str:
    return " + ".join(sorted({*one.split(" + "), *other.split(" + ")}))
