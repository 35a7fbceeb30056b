"""ActivationMap: hit ratios, entropy, drift, merge, files, the picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from coxcompile import ActivationMap
from coxcompile.inspect.heat_map import draw_heat_map
from coxcompile.planner.strategies import random_placement


def map_of(counts: Any, **fields: Any) -> ActivationMap:
    counts = np.array(counts)
    layers = tuple(f"layers.{i}.experts" for i in range(len(counts)))
    defaults = {"layers": layers, "model": "tiny", "tokens": 10, "strategy": "full pass"}
    return ActivationMap(counts=counts, **{**defaults, **fields})


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9))


def maps_of_shape(shape: tuple[int, int]) -> st.SearchStrategy[ActivationMap]:
    """Few different counts give ties and zeros. Drawn by numpy: element by element is slow."""
    counts = st.builds(
        lambda seed, most: np.random.default_rng(seed).integers(0, most, shape, endpoint=True),
        st.integers(0, 2**32),
        st.sampled_from([0, 1, 3, 1000]),
    )
    return st.builds(
        map_of, counts, tokens=st.integers(1, 5000), seed=st.none() | st.integers(0, 9)
    )


MAPS = SHAPES.flatmap(maps_of_shape)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(maps_of_shape(shape), maps_of_shape(shape)))


def counted(activation_map: ActivationMap) -> bool:
    return bool(activation_map.counts.sum())


def test_hit_ratio_is_hits_over_choices() -> None:
    activation_map = map_of([[6, 1, 3], [0, 0, 10]])
    assert activation_map.hit_ratio(1) == pytest.approx(16 / 20)
    assert activation_map.hit_ratio([2, 0]) == pytest.approx(9 / 20)


def test_layers_are_weighted_by_their_choices() -> None:
    assert map_of([[9, 0], [0, 1], [5, 5]]).hit_ratio([1, 0, 1]) == pytest.approx(14 / 20)


def test_ties_go_to_the_smaller_id() -> None:
    assert [row.tolist() for row in map_of([[2, 5, 5, 2]]).hottest(3)] == [[1, 2, 0]]


def test_another_maps_placement_is_judged_on_this_map() -> None:
    held_out, probed = map_of([[6, 1, 3]]), map_of([[1, 2, 9]])
    assert held_out.hit_ratio_of(probed, 1) == pytest.approx(0.3)
    assert held_out.hit_ratio_of(probed, 2) == pytest.approx(0.4)


@given(MAPS.filter(counted))
def test_hit_ratio_grows_from_none_to_all(activation_map: ActivationMap) -> None:
    ratios = [activation_map.hit_ratio(n) for n in range(activation_map.experts + 1)]
    assert ratios[0] == 0
    assert ratios[-1] == 1
    assert ratios == sorted(ratios)
    even = [n / activation_map.experts for n in range(activation_map.experts + 1)]
    assert all(ratio >= share - 1e-12 for ratio, share in zip(ratios, even, strict=True))


@given(PAIRS.filter(lambda pair: counted(pair[0])), st.data())
def test_no_placement_beats_the_maps_own(
    pair: tuple[ActivationMap, ActivationMap], data: st.DataObject
) -> None:
    judge, placement = pair
    numbers = st.integers(0, judge.experts)
    resident = data.draw(
        st.lists(numbers, min_size=len(judge.layers), max_size=len(judge.layers)) | numbers
    )
    assert judge.hit_ratio_of(placement, resident) <= judge.hit_ratio(resident)


@given(MAPS)
def test_hottest_are_distinct_and_no_other_is_hotter(activation_map: ActivationMap) -> None:
    for n in range(activation_map.experts + 1):
        for row, ids in zip(activation_map.counts, activation_map.hottest(n), strict=True):
            assert len(set(ids.tolist())) == n
            others = np.delete(row, ids)
            assert not n or not len(others) or row[ids].min() >= others.max()


@given(MAPS)
def test_entropy_lies_between_0_and_1(activation_map: ActivationMap) -> None:
    entropy = activation_map.entropy()
    assert entropy.shape == (len(activation_map.layers),)
    assert ((entropy >= 0) & (entropy <= 1)).all()


def test_entropy_at_its_ends() -> None:
    assert map_of([[4, 4, 4, 4], [0, 7, 0, 0], [3, 3, 0, 0]]).entropy() == pytest.approx(
        [1, 0, 0.5]
    )


@given(PAIRS)
def test_drift_is_a_distance(pair: tuple[ActivationMap, ActivationMap]) -> None:
    one, other = pair
    assert one.drift(one) == 0
    assert one.drift(other) == pytest.approx(other.drift(one))
    assert 0 <= one.drift(other) <= 1 + 1e-12


@given(SHAPES.flatmap(lambda shape: st.tuples(*[maps_of_shape(shape)] * 3)))
def test_drift_keeps_the_triangle_inequality(maps: tuple[ActivationMap, ...]) -> None:
    one, other, third = maps
    assert one.drift(third) <= one.drift(other) + other.drift(third) + 1e-12


@given(PAIRS.filter(lambda pair: all(m.counts.sum(1).min() > 0 for m in pair)), st.data())
def test_drift_bounds_the_change_of_a_hit_ratio(
    pair: tuple[ActivationMap, ActivationMap], data: st.DataObject
) -> None:
    """In one layer; over layers the bound holds for equally weighted ones."""
    one, other = (map_of(m.counts[:1]) for m in pair)
    n = data.draw(st.integers(0, one.experts))
    change = abs(one.hit_ratio(n) - other.hit_ratio_of(one, n))
    assert change <= one.drift(other) + 1e-9


def test_drift_at_its_ends() -> None:
    assert map_of([[4, 4, 0, 0]]).drift(map_of([[0, 0, 1, 5]])) == 1
    assert map_of([[4, 4, 0, 0]]).drift(map_of([[40, 40, 0, 0]], tokens=100)) == 0
    assert map_of([[4, 4], [1, 0]]).drift(map_of([[8, 0], [0, 1]])) == pytest.approx((0.5 + 1) / 2)


@given(PAIRS)
def test_merge_adds_counts_and_tokens(pair: tuple[ActivationMap, ActivationMap]) -> None:
    one, other = pair
    merged = one.merge(other)
    assert (merged.counts == one.counts + other.counts).all()
    assert merged.tokens == one.tokens + other.tokens
    assert merged == other.merge(one)


def test_merge_names_both_strategies_once() -> None:
    sample, full = map_of([[1, 2]], strategy="random sample", seed=3), map_of([[1, 2]])
    assert sample.merge(full).merge(full).strategy == "full pass + random sample"
    assert sample.merge(full).seed is None
    assert sample.merge(sample).seed == 3


def test_probabilities_sum_to_top_k() -> None:
    probabilities = map_of([[10, 6, 4], [8, 8, 4]], tokens=10).probabilities()
    assert probabilities[0] == pytest.approx([1, 0.6, 0.4])
    assert probabilities.sum(axis=1) == pytest.approx([2, 2])


@given(activation_map=MAPS)
def test_a_file_holds_everything(
    tmp_path_factory: pytest.TempPathFactory, activation_map: ActivationMap
) -> None:
    path = tmp_path_factory.mktemp("maps") / "map.safetensors"
    activation_map.save(path)
    assert ActivationMap.load(path) == activation_map
    assert [file.name for file in path.parent.iterdir()] == ["map.safetensors"]


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    text, tensors, missing = (tmp_path / name for name in ("text", "tensors", "missing"))
    text.write_text("counts")
    save_file({"counts": np.zeros((2, 3), dtype=np.int64)}, tensors)
    for path in (text, tensors, missing):
        with pytest.raises(ValueError, match=rf"{path.name} is no activation map.*stratify"):
            ActivationMap.load(path)


def test_random_placement_hits_by_its_share_of_the_experts() -> None:
    judge = map_of(np.random.default_rng(0).integers(0, 100, (3, 32)))
    ratios = [
        judge.hit_ratio_of(random_placement(judge.layers, 32, seed=seed), 8) for seed in range(200)
    ]
    assert np.mean(ratios) == pytest.approx(0.25, abs=0.01)
    assert random_placement(judge.layers, 32, seed=1) == random_placement(judge.layers, 32, seed=1)


def test_counts_cannot_be_changed() -> None:
    counts = np.array([[1, 2]])
    activation_map = map_of(counts)
    counts[0, 0] = 9
    assert activation_map.counts[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        activation_map.counts[0, 0] = 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"counts": [1, 2]}, r"counts is int64 \[2\].*\[layers, experts\]"),
        ({"counts": [[0.5, 1]]}, "counts is float64.*must be integers"),
        ({"counts": [[1, -2]]}, "counts holds -2"),
        ({"counts": [[1, 2]], "layers": ("a", "b")}, "layers has 2 names, but counts 1 rows"),
        ({"counts": [[1, 2]], "tokens": -1}, "tokens is -1"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        map_of(**fields)


@pytest.mark.parametrize(
    ("resident", "message"),
    [
        (3, r"resident is 3, but must lie in \[0, 2\]"),
        (-1, r"resident is -1, but must lie in \[0, 2\]"),
        ([1, 1], "resident has 2 numbers, but there are 1 layers"),
    ],
)
def test_wrong_numbers_of_residents_are_named(resident: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        map_of([[1, 2]]).hit_ratio(resident)


def test_maps_of_other_models_do_not_mix() -> None:
    one, other = map_of([[1, 2]]), map_of([[1, 2, 3]])
    for mixed in (one.merge, one.drift, lambda placement: one.hit_ratio_of(placement, 1)):
        with pytest.raises(ValueError, match="maps are of different models"):
            mixed(other)


def test_what_was_not_probed_has_no_probabilities() -> None:
    placement = random_placement(["layers.0.experts"], 4)
    with pytest.raises(ValueError, match="no tokens were probed"):
        placement.probabilities()
    with pytest.raises(ValueError, match="no tokens were probed"):
        placement.merge(placement)
    with pytest.raises(ValueError, match="counts no choice"):
        map_of([[0, 0]]).hit_ratio(1)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_heat_map_is_a_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"map.{suffix}"
    draw_heat_map(map_of([[6, 1, 3], [0, 0, 10]]), path)
    assert path.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])
    if suffix == "svg":
        assert "imshow" in path.read_text() or "<image" in path.read_text()
