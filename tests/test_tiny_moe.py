"""The committed checkpoint: small, trained, with routers that tell domains apart, and compiled."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import coxcompile
from tests.numerics import relative_error

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from local_text import sample
from router_statistics import RouterStatistics, measure

CHECKPOINT = Path(__file__).parents[1] / "examples/tiny_moe"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    assert isinstance(loaded, PreTrainedModel)
    return loaded


@pytest.fixture(scope="module")
def halves(model: PreTrainedModel) -> list[RouterStatistics]:
    threads = torch.get_num_threads()
    # Operations this small wait for a second thread longer than they compute on shared cores.
    torch.set_num_threads(1)
    try:
        return [measure(model, "held-out", sequences=24, length=128, seed=seed) for seed in (1, 2)]
    finally:
        torch.set_num_threads(threads)


def test_is_stored_in_bfloat16_within_ten_megabytes() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 10_000_000
    stored = AutoModelForCausalLM.from_pretrained(CHECKPOINT)
    assert {weight.dtype for weight in stored.parameters()} == {torch.bfloat16}


def test_predicts_held_out_text_better_than_any_unigram_model(
    halves: list[RouterStatistics],
) -> None:
    for half in halves:
        for domain, bits in half.bits.items():
            assert bits < 0.8 * half.unigram_bits[domain], domain


def test_no_expert_is_dead_in_all_layers(halves: list[RouterStatistics]) -> None:
    assert sum(half.counts for half in halves).sum((0, 1)).min() > 0


def test_routing_differs_between_domains_by_more_than_noise(
    halves: list[RouterStatistics],
) -> None:
    first, second = (half.shares() for half in halves)
    domains, layers, _ = first.shape
    # Total variation, [domains, domains, layers]; the diagonal is the noise between two samples.
    distances = (first[:, None] - second[None]).abs().sum(-1) / 2
    same = distances.diagonal().mean(-1)
    other = (distances.sum((0, 1)) - distances.diagonal().sum(-1)) / (domains * (domains - 1))
    assert same.shape == (layers,)
    assert (other > 2 * same).all(), (same, other)


def test_compiles_with_every_layer_rewritten(model: PreTrainedModel) -> None:
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    prompts = [sample("python", "held-out", 2, 192, generator) for _ in range(2)]
    explanation = coxcompile.explain(model, input_ids=prompts[0], use_cache=False)
    assert len(explanation.blocks) == model.config.num_hidden_layers, str(explanation)
    assert not explanation.skipped

    compiled = torch.compile(model, backend="coxmoe", fullgraph=True)
    with torch.no_grad():
        for ids in prompts:
            ours = compiled(input_ids=ids, use_cache=False).logits
            assert relative_error(ours, model(input_ids=ids, use_cache=False).logits) < 1e-5
