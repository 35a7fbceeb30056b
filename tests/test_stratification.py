"""stratify and the strategies beside it: what is probed, what is counted, resuming, errors."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coxcompile import ActivationMap, stratify
from coxcompile.planner.counting_model import CountingModel
from coxcompile.planner.embedding import mean_pooled_token_embeddings
from coxcompile.planner.probing import equal_length_batches
from coxcompile.planner.prototypes import choose_prototypes, largest_remainder
from coxcompile.planner.sequences import token_sequences
from coxcompile.planner.strategies import full_pass, random_placement, random_sample
from coxcompile.planner.stratification import prototype_count
from coxcompile.runtime.kernels.toolchain import Obstacle
from tests.models import build

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> Iterator[CountingModel]:
    """Compiled once, its graph run operator by operator: that it counts right with Inductor is
    test_count_choices' subject."""
    with pytest.MonkeyPatch.context() as patch:
        lower = importlib.import_module("coxcompile.passes.lower")
        patch.setattr(lower, "inductor_obstacle", lambda: Obstacle("a test", "None"))
        torch._dynamo.reset()
        yield CountingModel(build("qwen3_moe", dtype=torch.float32))


@pytest.fixture(scope="module")
def dataset() -> list[torch.Tensor]:
    """240 inputs of 4 lengths in three domains, of 160, 60 and 20 inputs, with 10 tokens each."""
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randint(first, first + 10, (5 + number % 4,), generator=generator)
        for first, size in ((0, 160), (50, 60), (100, 20))
        for number in range(size)
    ]
    return [inputs[i] for i in torch.randperm(len(inputs), generator=generator).tolist()]


def test_a_full_pass_counts_every_token_as_eager_does(
    model: CountingModel, dataset: list[torch.Tensor]
) -> None:
    dataset = dataset[:60]
    counts = np.zeros((2, 16), dtype=np.int64)

    def count(layer: int, expert_ids: torch.Tensor) -> None:
        counts[layer] += np.bincount(expert_ids.flatten().numpy(), minlength=16)

    handles = [
        layer.mlp.experts.register_forward_pre_hook(lambda _, inputs, i=i: count(i, inputs[1]))
        for i, layer in enumerate(model.model.model.layers)
    ]
    with torch.no_grad():
        for ids in dataset:
            model.model(input_ids=ids[None], use_cache=False)
    for handle in handles:
        handle.remove()

    probed = full_pass(model, dataset, batch_size=16, progress=False)
    assert (probed.counts == counts).all()
    assert probed.tokens == sum(map(len, dataset))
    assert probed.layers == ("model.layers.0.mlp.experts", "model.layers.1.mlp.experts")
    assert (probed.strategy, probed.seed) == ("full pass", None)
    assert probed.probabilities().sum(axis=1) == pytest.approx([4, 4])


def test_stratification_is_close_to_the_full_pass_and_far_from_random_placement(
    model: CountingModel, dataset: list[torch.Tensor]
) -> None:
    full = full_pass(model, dataset, progress=False)
    stratified = stratify(model, dataset, progress=False)
    assert stratified.tokens <= 0.05 * len(dataset) * 8
    placements = [random_placement(full.layers, full.experts, seed=seed) for seed in range(20)]
    placed = np.mean([full.hit_ratio_of(placement, 4) for placement in placements])
    assert full.hit_ratio_of(stratified, 4) > placed + 0.8 * (full.hit_ratio(4) - placed)


def test_the_prototypes_are_what_is_counted(
    model: CountingModel, dataset: list[torch.Tensor]
) -> None:
    vectors = mean_pooled_token_embeddings(model.model, dataset)
    chosen = choose_prototypes(vectors, 24, clusters=5, seed=3)
    expected = full_pass(model, [dataset[i] for i in chosen], progress=False)
    stratified = stratify(model, dataset, fraction=0.1, clusters=5, seed=3, progress=False)
    assert (stratified.counts == expected.counts).all()
    assert stratified.tokens == expected.tokens
    assert (stratified.strategy, stratified.seed) == ("stratification", 3)


def test_the_same_seed_gives_the_same_map(
    model: CountingModel, dataset: list[torch.Tensor]
) -> None:
    for strategy in (stratify, random_sample):
        first, again = (strategy(model, dataset, seed=1, progress=False) for _ in range(2))
        assert first == again
    other = random_sample(model, dataset, seed=2, progress=False)
    assert not (other.counts == random_sample(model, dataset, seed=1, progress=False).counts).all()


def test_the_batch_size_does_not_change_the_counts(
    model: CountingModel, dataset: list[torch.Tensor]
) -> None:
    maps = [stratify(model, dataset, batch_size=size, progress=False) for size in (1, 3, 100)]
    assert maps[0] == maps[1] == maps[2]


def test_masked_padding_is_not_counted(model: CountingModel) -> None:
    padded = [
        {"input_ids": [7, 8, 9, 0, 0], "attention_mask": [1, 1, 1, 0, 0]},
        {"input_ids": torch.tensor([[0, 4, 5]]), "attention_mask": torch.tensor([[0, 1, 1]])},
        {"input_ids": np.array([1, 2])},
    ]
    bare = [torch.tensor([7, 8, 9]), torch.tensor([4, 5]), torch.tensor([1, 2])]
    assert full_pass(model, padded, progress=False) == full_pass(model, bare, progress=False)


def test_an_own_embedding_decides_the_clusters(
    model: CountingModel, dataset: list[torch.Tensor]
) -> None:
    def length(sequences: list[torch.Tensor]) -> np.ndarray:
        return np.array([[len(sequence)] for sequence in sequences])

    stratified = stratify(model, dataset, clusters=4, embed=length, progress=False)
    assert stratified.tokens == 3 * (5 + 6 + 7 + 8)  # 12 prototypes of 4 lengths, as the dataset


class _Interrupted(Exception):
    pass


def interrupt_after(batches: int, model: CountingModel, patch: pytest.MonkeyPatch) -> list[int]:
    """Let so many batches pass; the list grows by one size a batch."""
    count, sizes = model.count, []

    def counting(input_ids: torch.Tensor) -> np.ndarray:
        if len(sizes) == batches:
            raise _Interrupted
        sizes.append(len(input_ids))
        return count(input_ids)

    patch.setattr(model, "count", counting)
    return sizes


@pytest.mark.parametrize("strategy", [stratify, random_sample, full_pass])
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_resumed_probe_gives_the_same_map(
    strategy: Any, batches: int, model: CountingModel, dataset: list[torch.Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "state.safetensors"
    arguments: dict[str, Any] = {"batch_size": 2, "progress": False}
    uninterrupted = strategy(model, dataset[:60], **arguments)
    with pytest.MonkeyPatch.context() as patch:
        before = interrupt_after(batches if strategy is full_pass else batches // 2, model, patch)
        with pytest.raises(_Interrupted):
            strategy(model, dataset[:60], resume=file, **arguments)
    with pytest.MonkeyPatch.context() as patch:
        after = interrupt_after(1000, model, patch)
        assert strategy(model, dataset[:60], resume=file, **arguments) == uninterrupted
    with pytest.MonkeyPatch.context() as patch:
        again = interrupt_after(0, model, patch)
        assert strategy(model, dataset[:60], resume=file, **arguments) == uninterrupted
    assert not again
    assert sum(before) + sum(after) == (60 if strategy is full_pass else 3)


def test_a_resumed_probe_embeds_nothing_again(
    model: CountingModel, dataset: list[torch.Tensor], tmp_path: Path
) -> None:
    calls = []

    def embed(sequences: list[torch.Tensor]) -> np.ndarray:
        calls.append(len(sequences))
        return mean_pooled_token_embeddings(model.model, sequences)

    for _ in range(2):
        stratify(model, dataset, embed=embed, progress=False, resume=tmp_path / "state")
    assert calls == [len(dataset)]


def test_other_arguments_cannot_resume(
    model: CountingModel, dataset: list[torch.Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "state"
    stratify(model, dataset, progress=False, resume=file)
    before = file.read_bytes()
    others: list[tuple[str, dict[str, Any]]] = [
        ("fraction was 0.05 and is 0.1", {"fraction": 0.1}),
        ("seed was 0 and is 7", {"seed": 7}),
        ("clusters was 11 and is 2", {"clusters": 2}),
        ("batch_size was 32 and is 8", {"batch_size": 8}),
        (
            "embed was mean-pooled token embeddings and is builtins.len",
            {"embed": len},
        ),
        ("dataset was 240 inputs", {"dataset": dataset[::-1]}),
        ("weights was ", {"model": build("qwen3_moe", dtype=torch.bfloat16)}),
    ]
    for message, changed in others:
        arguments = {"model": model, "dataset": dataset, "progress": False, **changed}
        with pytest.raises(ValueError, match=f"cannot be resumed with other arguments.*{message}"):
            stratify(resume=file, **arguments)
    with pytest.raises(ValueError, match="strategy was stratification and is random sample"):
        random_sample(model, dataset, progress=False, resume=file)
    assert file.read_bytes() == before


def test_a_map_is_no_state(
    model: CountingModel, dataset: list[torch.Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "map.safetensors"
    full_pass(model, dataset[:4], progress=False).save(file)
    with pytest.raises(ValueError, match=r"map\.safetensors"):
        stratify(model, dataset, progress=False, resume=file)
    stratify(model, dataset, progress=False, resume=tmp_path / "state")
    with pytest.raises(ValueError, match="no activation map"):
        ActivationMap.load(tmp_path / "state")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": []}, "dataset is empty"),
        ({"dataset": [torch.ones(2, 3)]}, r"dataset\[0\] is float32 \[2, 3\]"),
        ({"dataset": [[1], torch.ones(2, 3, dtype=torch.int64)]}, r"dataset\[1\] is int64"),
        ({"dataset": [[1], torch.ones(0, dtype=torch.int64)]}, r"dataset\[1\] has no tokens"),
        ({"dataset": [{"text": "a"}]}, r"dataset\[0\] has no input_ids, but text"),
        (
            {"dataset": [{"input_ids": [1, 2], "attention_mask": [1]}]},
            r"dataset\[0\] has 2 input_ids, but an attention_mask of 1",
        ),
        ({"fraction": 0}, r"fraction is 0, but must lie in \(0, 1\]"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"clusters": 0}, r"clusters is 0, but must lie in \[1, 240 inputs\]"),
        ({"clusters": 241}, "clusters is 241"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"resume": Path("/nonexistent/state")}, "/nonexistent is no directory"),
        ({"embed": lambda _: np.ones((3, 4))}, r"embed gave an array \[3, 4\].*\[240 inputs, D\]"),
        ({"embed": lambda inputs: np.full((len(inputs), 2), np.nan)}, "finite numbers"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], message: str, model: CountingModel, dataset: list[torch.Tensor]
) -> None:
    with pytest.raises(ValueError, match=message):
        stratify(**{"model": model, "dataset": dataset, "progress": False, **arguments})


def test_a_model_without_an_embedding_asks_for_one() -> None:
    with pytest.raises(ValueError, match=r"Linear has no get_input_embeddings.*pass embed="):
        mean_pooled_token_embeddings(torch.nn.Linear(2, 2), [torch.tensor([1])])


def test_mean_pooled_embeddings_are_means() -> None:
    model = build("mixtral", dtype=torch.bfloat16)
    table = model.get_input_embeddings().weight.float()
    ids = [torch.tensor([3, 4, 4]), torch.tensor([9])]
    expected = torch.stack([(table[3] + 2 * table[4]) / 3, table[9]]).detach()
    torch.testing.assert_close(torch.from_numpy(mean_pooled_token_embeddings(model, ids)), expected)


def test_prototypes_are_in_proportion_and_nearest_the_centres() -> None:
    generator = np.random.default_rng(0)
    sizes, centres = (120, 60, 20), np.array([[0, 0], [100, 0], [0, 100]])
    labels = np.repeat(np.arange(3), sizes)
    points = (centres[labels] + generator.normal(size=(200, 2))).astype(np.float32)
    chosen = choose_prototypes(points, 20, clusters=3, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [12, 6, 2]
    for cluster in range(3):
        members = np.flatnonzero(labels == cluster)
        distances = np.linalg.norm(points[members] - points[members].mean(axis=0), axis=1)
        is_chosen = np.isin(members, chosen)
        # MiniBatchKMeans' centres are near the means, not equal.
        assert np.median(distances[is_chosen]) < np.median(distances)


def test_equal_inputs_can_be_clustered() -> None:
    chosen = choose_prototypes(np.ones((10, 3), dtype=np.float32), 4, clusters=3, seed=0)
    assert len(set(chosen.tolist())) == 4


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20).filter(any), st.data())
def test_largest_remainder_is_proportional(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, sum(sizes)))
    seats = largest_remainder(np.array(sizes), count)
    assert seats.sum() == count
    for size, share in zip(sizes, seats, strict=True):
        assert abs(share - size * count / sum(sizes)) < 1
        assert 0 <= share <= size


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**6))
def test_never_more_prototypes_than_the_fraction_but_one(fraction: float, inputs: int) -> None:
    count = prototype_count(fraction, inputs)
    assert 1 <= count <= max(1, fraction * inputs + 1e-6)
    assert count > fraction * inputs - 1


def test_fractions_that_are_whole_numbers_of_inputs_are_exact() -> None:
    assert [prototype_count(percent / 100, 100) for percent in range(1, 101)] == [*range(1, 101)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(1, 7))
def test_batches_are_of_one_length_and_hold_each_input_once(
    lengths: list[int], batch_size: int
) -> None:
    sequences = [torch.zeros(length, dtype=torch.int64) for length in lengths]
    batches = list(equal_length_batches(sequences, range(len(lengths)), batch_size))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(len({lengths[i] for i in batch}) == 1 for batch in batches)
    least = sum(-(-lengths.count(length) // batch_size) for length in set(lengths))
    assert len(batches) == least


@pytest.mark.usefixtures("model")
def test_the_documentation_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "stratification.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    for folder in ("examples", "coxcompile"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2
    assert ActivationMap.load(tmp_path / "activation_map.safetensors") == names["activation_map"]
    assert names["counts"].to_numpy().sum() == 4 * 4 * len(names["dataset"][0])


def test_token_sequences_are_int64_whatever_they_come_as() -> None:
    sequences = token_sequences([[1, 2], torch.tensor([3], dtype=torch.int32), {"input_ids": [4]}])
    assert [sequence.tolist() for sequence in sequences] == [[1, 2], [3], [4]]
    assert all(sequence.dtype == torch.int64 for sequence in sequences)
