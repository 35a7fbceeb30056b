"""benchmarks/stratification.py and payback.py: what is computed from maps; no timings."""

import sys
from pathlib import Path

import numpy as np
import pytest

from coxcompile import ActivationMap
from coxcompile.systems import SYSTEMS

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

pytest.importorskip("transformers")
pytest.importorskip("rich")

from payback import Batch, pay_back
from stratification import judged

FULL = ActivationMap(
    counts=np.array([[80, 60, 40, 20], [100, 100, 0, 0]]),
    layers=("layers.0", "layers.1"),
    model="tiny",
    tokens=100,
    strategy="full pass",
)


def test_misses_are_those_of_simulated_batches() -> None:
    """Against batches drawn at random, each expert on its own with the map's probability."""
    batch = Batch(sequences=2, input_tokens=3, output_tokens=4)
    generator = np.random.default_rng(0)
    placement = FULL.hottest(1)
    simulated = []
    for _ in range(4000):
        missed = 0
        for tokens in (6, 2, 2, 2):
            drawn = generator.random((tokens, 2, 4)) < FULL.probabilities()
            needed = drawn.any(axis=0)
            for layer, ids in zip(needed, placement, strict=True):
                layer[ids] = False
            missed += int(needed.sum())
        simulated.append(missed)
    assert batch.misses(FULL, FULL, 1) == pytest.approx(np.mean(simulated), rel=0.02)
    assert batch.misses(FULL, FULL, 4) == 0


def test_payback_is_cost_over_what_a_batch_saves() -> None:
    batch = Batch(sequences=2, input_tokens=3, output_tokens=4)
    link = SYSTEMS["a100-8452y"].host_to_device
    assert link is not None
    one_miss = link.seconds(10**6)
    arguments = {
        "batch": batch,
        "seconds": 30 * one_miss,
        "compiling_seconds": 10 * one_miss,
        "expert_bytes": 10**6,
        "system": "a100-8452y",
    }
    paid = pay_back(12.0, 8.0, **arguments)
    assert (paid.batches, paid.batches_with_compiling) == (8, 10)
    assert pay_back(8.0, 8.0, **arguments).batches is None
    with pytest.raises(ValueError, match="system xeon-8480-cpu has no GPU"):
        pay_back(12.0, 8.0, **{**arguments, "system": "xeon-8480-cpu"})


def test_a_strategy_is_judged_on_the_full_pass() -> None:
    coldest_first = ActivationMap(
        counts=FULL.counts.max() - FULL.counts,
        layers=FULL.layers,
        model="tiny",
        tokens=7,
        strategy="worst",
    )
    batch = Batch(sequences=2, input_tokens=3, output_tokens=4)
    row = judged([FULL, coldest_first], 6.0, FULL, batch)
    assert (row.runs, row.tokens, row.seconds) == (2, 54, 3.0)
    least, mean, most = row.hit_ratios[25]
    assert (least, most) == (pytest.approx(20 / 400), pytest.approx(180 / 400))
    assert mean == pytest.approx(100 / 400)
