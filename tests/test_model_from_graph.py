"""A model's spec and workload from its graph, beside those of its config."""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import torch
from transformers import DynamicCache

from coxcompile.passes.context import MoEBlock
from coxcompile.planner.model_from_graph import model_from_graph, workload_from_graph
from coxcompile.planner.model_spec import ModelSpec, model_from_config
from coxcompile.planner.plan import ExpertSplit, StagePlan
from coxcompile.planner.stage_load import stage_load
from coxcompile.planner.workload import uniform_workload
from tests.graph_cases import BATCH, CACHE, CALLS, PROMPT, Graph, capture, family_graph, model_of
from tests.models import FAMILIES

LATENT = ("deepseek_v2", "deepseek_v3")


def spec_of(graph: Graph) -> ModelSpec:
    return model_from_graph(graph.graph_module, graph.context.blocks)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_config(family: str, call: str) -> None:
    expected = model_from_config(model_of(family).config, "model")
    if not FAMILIES[family].dense_layers:
        # The config has a width for dense layers, and none of them.
        expected = replace(expected, dense_dim=0)
    if family in LATENT and call == "forward":
        # Without a cache, what enters attention is not the latent but what it expands to.
        expected = replace(expected, kv_elements=None)
    assert spec_of(family_graph(family, call)) == expected


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_a_cache_that_grows(family: str) -> None:
    """Inputs that new keys and values are appended to, and that nothing is written back to."""
    model = model_of(family)
    past = DynamicCache(config=model.config)
    ids = torch.zeros(BATCH, PROMPT, dtype=torch.int64)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=past)
    graph = capture(model, input_ids=ids[:, :1], past_key_values=past)
    assert not graph.context.notes
    assert spec_of(graph) == spec_of(family_graph(family, "decode"))
    expected = ("decode", uniform_workload(BATCH, PROMPT, 2))
    assert workload_from_graph(graph.graph_module) == expected


def test_sizes_that_are_no_multiples_and_tied_embeddings() -> None:
    model = model_of("glm4_moe", odd=True, layers=4, tie_word_embeddings=True)
    graph = capture(model, input_ids=torch.zeros(2, 5, dtype=torch.int64), use_cache=False)
    spec = spec_of(graph)
    assert spec == model_from_config(model.config, "model")
    assert (spec.layers, spec.dense_layers, spec.tied_embeddings) == (4, 1, True)


def test_symbolic_sizes_count_as_in_the_example() -> None:
    model = model_of("qwen3_moe")
    ids = torch.zeros(3, 7, dtype=torch.int64)
    for dimension in (0, 1):
        torch._dynamo.mark_dynamic(ids, dimension)
    graph = capture(model, input_ids=ids, use_cache=False)
    embedding = next(n for n in graph.nodes if "embedding" in str(n.target))
    assert isinstance(embedding.meta["val"].shape[0], torch.SymInt)
    assert workload_from_graph(graph.graph_module) == ("prefill", uniform_workload(3, 7, 1))
    assert spec_of(graph) == spec_of(family_graph("qwen3_moe", "forward"))


def test_a_model_without_head() -> None:
    decoder = model_of("mixtral").model
    graph = capture(decoder, input_ids=torch.zeros(2, 5, dtype=torch.int64), use_cache=False)
    whole = spec_of(family_graph("mixtral", "forward"))
    assert spec_of(graph) == replace(whole, vocabulary=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_workloads(family: str) -> None:
    expected = {
        "forward": ("prefill", uniform_workload(BATCH, PROMPT, 1)),
        "prefill": ("prefill", uniform_workload(BATCH, PROMPT, CACHE - PROMPT)),
        "decode": ("decode", uniform_workload(BATCH, CACHE - 1, 2)),
    }
    for call in CALLS:
        assert workload_from_graph(family_graph(family, call).graph_module) == expected[call]


def test_a_decoding_step_reads_the_whole_cache() -> None:
    _, workload = workload_from_graph(family_graph("olmoe", "decode").graph_module)
    plan = StagePlan(
        qkv="cpu",
        attention="cpu",
        output="cpu",
        micro_batch=BATCH,
        block=BATCH,
        coalesced=True,
        experts=(ExpertSplit(resident=0, migrating=0, cpu=16),) * 2,
    )
    load = stage_load(workload, "decode", plan)
    assert (load.cached_reads, load.tokens, load.steps) == (BATCH * CACHE, BATCH, 1)


def bare_block() -> Graph:
    return capture(model_of("mixtral").model.layers[0].mlp, torch.zeros(2, 5, 64).bfloat16())


def without_blocks() -> Graph:
    graph = family_graph("dense", "forward")
    assert not graph.context.blocks
    return graph


def with_another_block() -> Graph:
    graph = family_graph("mixtral", "forward")
    first, second = graph.context.blocks
    context = replace(graph.context, blocks=[first, replace(cast(MoEBlock, second), experts=9)])
    return Graph(graph.graph_module, context)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bare_block, "layer 0 of the graph has no attention"),
        (without_blocks, "no MoE block"),
        (with_another_block, "experts is 8, 9 in different layers"),
    ],
)
def test_what_no_spec_describes_is_refused(make: Callable[[], Graph], message: str) -> None:
    graph = make()
    with pytest.raises(ValueError, match=message):
        spec_of(graph)
