"""FlexGen's linear program: within its bounds, and no worse than any point of a grid."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coxcompile.planner.policies.flexgen_shares import VARIABLES, BlockCosts, constraints, solve

FEW = settings(max_examples=25, deadline=None)


def least_seconds(costs: BlockCosts, values: dict[str, float]) -> float:
    """The objective for given shares, by FlexGen's bounds written out; infinite: does not fit."""
    c, v = costs, values
    weights = c.layer_bytes * (v["weights_host"] + v["weights_disk"])
    from_disk = c.layer_bytes * v["weights_disk"] / c.from_disk if c.disk else 0.0
    out = c.prefill_hidden_bytes * v["hidden_host"] + c.new_cache_bytes * v["cache_host"]
    prefill = max(
        (weights + c.prefill_hidden_bytes * v["hidden_host"]) / c.to_gpu + from_disk,
        out / c.to_host,
        c.prefill_compute,
    )
    hidden = c.decode_hidden_bytes * v["hidden_host"]
    attention = c.attention_gpu * v["cache_gpu"] + c.attention_cpu * v["cache_host"]
    decode = (weights + hidden) / c.to_gpu + max(
        hidden / c.to_host, from_disk / 0.95, c.decode_compute + attention
    )
    all_weights, cache = c.layers * c.layer_bytes, c.layers * c.cache_bytes
    vram = (
        all_weights * v["weights_gpu"]
        + 2 * c.layer_bytes * (1 - v["weights_gpu"])
        + cache * v["cache_gpu"]
        + c.prefill_hidden_bytes * v["hidden_gpu"]
        + c.micro_batch_hidden_bytes * v["hidden_host"]
        + c.intermediate_bytes
    )
    host = (
        all_weights * (1 - v["weights_disk"])
        + cache * v["cache_host"]
        + c.prefill_hidden_bytes * v["hidden_host"]
    )
    if vram > c.vram or host > c.host or all_weights * v["weights_disk"] > c.disk:
        return math.inf
    return c.layers * (prefill + c.decode_steps * decode)


SIXTEENTHS = [i / 16 for i in range(17)]
GRID = [
    {
        "weights_gpu": on_gpu,
        "weights_host": 1 - on_gpu - disk,
        "weights_disk": disk,
        "cache_gpu": cache,
        "cache_host": 1 - cache,
        "hidden_gpu": hidden,
        "hidden_host": 1 - hidden,
    }
    for on_gpu, disk, cache, hidden in itertools.product(
        SIXTEENTHS, SIXTEENTHS[::4], (0.0, 1.0), SIXTEENTHS[::4]
    )
    if on_gpu + disk <= 1
]


@st.composite
def program_costs(draw: st.DrawFn) -> BlockCosts:
    def number(low: float, high: float) -> float:
        return draw(st.floats(low, high))

    layers = draw(st.integers(1, 40))
    layer_bytes = number(1e7, 1e10)
    return BlockCosts(
        layers=layers,
        decode_steps=number(0, 200),
        layer_bytes=layer_bytes,
        prefill_hidden_bytes=number(1e5, 1e10),
        decode_hidden_bytes=number(1e4, 1e8),
        new_cache_bytes=number(1e5, 1e9),
        cache_bytes=number(1e5, 2e9),
        micro_batch_hidden_bytes=number(1e4, 1e6),
        intermediate_bytes=number(0, 1e9),
        prefill_compute=number(1e-4, 10.0),
        decode_compute=number(1e-5, 1.0),
        attention_gpu=number(1e-6, 0.1),
        attention_cpu=number(1e-6, 1.0),
        to_gpu=number(1e9, 1e11),
        to_host=number(1e9, 1e11),
        from_disk=2e9,
        vram=number(0.1, 1.5) * layers * layer_bytes,
        host=number(0.5, 3.0) * layers * layer_bytes,
        disk=draw(st.sampled_from([0.0, 1e13])),
    )


@FEW
@given(costs=program_costs())
def test_flexgens_shares_keep_their_bounds_and_beat_every_point_of_a_grid(
    costs: BlockCosts,
) -> None:
    found = solve(costs)
    on_grid = min(least_seconds(costs, values) for values in GRID)
    if found is None:
        assert on_grid == math.inf
        return
    matrix, limits = constraints(costs)
    values = np.array([found.values[name] for name in VARIABLES])
    assert np.all(matrix @ values <= limits + 1e-6 * (1 + np.abs(limits)))
    for kind in ("weights", "cache", "hidden"):
        kind_shares = [found.values[name] for name in VARIABLES if name.startswith(f"{kind}_")]
        assert sum(kind_shares) == pytest.approx(1)
        assert min(kind_shares) >= -1e-9
    assert found.values["cache_gpu"] == pytest.approx(round(found.values["cache_gpu"]))
    assert found.seconds <= on_grid * (1 + 1e-6)


@FEW
@given(costs=program_costs(), factor=st.floats(1.0, 3.0))
@pytest.mark.parametrize("better", ["vram", "host", "to_gpu", "to_host"])
def test_flexgens_optimum_never_suffers_from_more_of_a_resource(
    better: str, costs: BlockCosts, factor: float
) -> None:
    before = solve(costs)
    after = solve(replace(costs, **{better: factor * getattr(costs, better)}))
    if before is not None:
        assert after is not None
        assert after.seconds <= before.seconds * (1 + 1e-6)
