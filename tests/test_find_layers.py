"""Layers and their operations, found by the graph's structure."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from coxcompile.passes.find_layers import find_layers
from coxcompile.passes.products import multiplies_activations, weight_of
from tests.graph_cases import CALLS, Graph, capture, family_graph, model_of
from tests.models import FAMILIES

ALL = [*FAMILIES, "dense"]
LATENT = ("deepseek_v2", "deepseek_v3")
WIDTH = 16


def weights_of(graph: Graph, operation: str) -> list[str]:
    """Dotted names, as the model has them, of the weights that an operation multiplies by."""
    names = []
    for node in graph.of(operation):
        weight = weight_of(node)
        while weight is not None and weight.op == "call_function":
            (weight,) = weight.all_input_nodes
        if weight is not None:
            names.append(str(weight.meta["path"]).removesuffix(".weight"))
    return names


def expected_operation(name: str, *, cached: bool) -> str:
    """The test may know names, unlike the pass."""
    if name.endswith("o_proj") or "mlp" in name or "moe" in name:
        return "output"
    if name.endswith("kv_b_proj") and cached:
        return "attention"
    return "qkv" if "self_attn" in name else "head"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", ALL)
def test_every_weight_belongs_to_its_operation_and_layer(family: str, call: str) -> None:
    graph = family_graph(family, call)
    assert not graph.context.notes
    model = model_of(family)
    linears = {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and "embed" not in name and not name.endswith("bias")
    }
    found = {
        name.removesuffix(".weight"): operation
        for operation in ("qkv", "attention", "output", "head")
        for name in weights_of(graph, operation)
    }
    assert set(found) == {name.removesuffix(".weight") for name in linears}
    for name, operation in found.items():
        assert operation == expected_operation(name, cached=call != "forward"), name
    for node in graph.nodes:
        weight = weight_of(node)
        path = "" if weight is None else str(weight.meta.get("path", ""))
        if ".layers." in path:
            assert node.meta["layer"] == int(path.split(".layers.")[1].split(".")[0])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", ALL)
def test_whatever_depends_on_the_embedding_has_an_operation(family: str, call: str) -> None:
    graph = family_graph(family, call)
    embedding = next(node for node in graph.nodes if "embedding" in str(node.target))
    reached = {embedding}
    for node in graph.nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    assert all("operation" in node.meta for node in reached)
    others = [node for node in graph.nodes if node not in reached and "operation" in node.meta]
    assert all(node.meta["operation"] == "attention" for node in others)
    assert all(("layer" in n.meta) == (n.meta["operation"] != "head") for n in reached)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", ALL)
def test_operations_of_layers_follow_one_another(family: str, call: str) -> None:
    """No operation reads what a later one computes, so each can run as a whole."""
    graph = family_graph(family, call)
    rank = {"qkv": 0, "attention": 1, "output": 2, "experts": 2}
    for node in graph.nodes:
        if "operation" not in node.meta:
            continue
        for source in node.all_input_nodes:
            if "operation" in source.meta and source.meta["operation"] != "head":
                if node.meta["operation"] == "head":
                    continue
                before = (source.meta["layer"], rank[source.meta["operation"]])
                assert before <= (node.meta["layer"], rank[node.meta["operation"]]), node


@pytest.mark.parametrize("family", ALL)
def test_counts_of_attention_experts_and_write_backs(family: str) -> None:
    graph = family_graph(family, "decode")
    moe_layers = FAMILIES[family].expected_moe_layers() if family in FAMILIES else 0
    assert len(graph.of("experts")) == moe_layers
    assert [node.meta["layer"] for node in graph.of("experts")] == list(range(2 - moe_layers, 2))
    for layer in range(2):
        targets = Counter(str(node.target) for node in graph.of("attention", layer))
        assert targets["aten.copy_.default"] == 2
        products = sum(map(multiplies_activations, graph.of("attention", layer)))
        assert products == (2 if family == "gpt_oss" else 1)


def test_a_rolled_cache_is_part_of_attention() -> None:
    """GPT-OSS's sliding window: what happens to the cache before new keys enter it."""
    rolls = [n for n in family_graph("gpt_oss", "decode").nodes if "roll" in str(n.target)]
    assert len(rolls) == 2
    assert all((n.meta["operation"], n.meta["layer"]) == ("attention", 0) for n in rolls)


@pytest.mark.parametrize("family", LATENT)
def test_latent_attention_without_a_cache_projects_in_qkv(family: str) -> None:
    ends = {name.rsplit(".", 1)[1] for name in weights_of(family_graph(family, "forward"), "qkv")}
    assert ends == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"}


def test_nothing_but_two_keys_of_metadata_changes() -> None:
    graph = family_graph("qwen2_moe", "decode")
    keys = ("operation", "layer")
    before = [(n.format_node(), {k: n.meta[k] for k in keys if k in n.meta}) for n in graph.nodes]
    others = [{k: v for k, v in n.meta.items() if k not in keys} for n in graph.nodes]
    for node in graph.nodes:
        node.meta = {k: v for k, v in node.meta.items() if k not in keys}
    find_layers(graph.graph_module, graph.context)
    after = [(n.format_node(), {k: n.meta[k] for k in keys if k in n.meta}) for n in graph.nodes]
    assert after == before
    for node, other in zip(graph.nodes, others, strict=True):
        assert set(node.meta) - set(keys) == set(other)
        assert all(node.meta[key] is value for key, value in other.items())


def test_inputs_embeds_in_place_of_ids() -> None:
    embedded = capture(
        model_of("mixtral"),
        inputs_embeds=torch.randn(4, 12, 64, dtype=torch.bfloat16),
        use_cache=False,
    )
    for operation in ("qkv", "attention", "output", "head"):
        assert weights_of(embedded, operation) == weights_of(
            family_graph("mixtral", "forward"), operation
        )


def test_a_bare_moe_module_is_numbered_by_its_experts() -> None:
    block = model_of("qwen2_moe").model.layers[0].mlp
    graph = capture(block, torch.randn(2, 5, 64, dtype=torch.bfloat16))
    assert not graph.context.notes
    assert {n.meta["operation"] for n in graph.nodes if "operation" in n.meta} == {
        "output",
        "experts",
    }
    assert len(weights_of(graph, "output")) == 5
    assert {n.meta["layer"] for n in graph.nodes if "layer" in n.meta} == {0}


class Layer(nn.Module):
    """Attention beside or before an FFN, with or without residual stream."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out, self.ffn = (
            nn.Linear(WIDTH, WIDTH) for _ in range(5)
        )

    def attend(self, states: Tensor) -> Tensor:
        heads = (p(states).unflatten(-1, (2, -1)) for p in (self.query, self.key, self.value))
        attended = scaled_dot_product_attention(*(head.transpose(1, 2) for head in heads))
        return self.out(attended.transpose(1, 2).flatten(2))

    def forward(self, states: Tensor, first: Tensor) -> Tensor:
        if self.kind == "parallel":
            normed = self.norm(states)
            return states + self.attend(normed) + self.ffn(normed)
        if self.kind == "post_norm":
            states = states + self.norm(self.attend(states))
            return states + self.norm(self.ffn(states))
        if self.kind == "from_the_first":
            return self.ffn(first + self.attend(self.norm(states)))
        raise AssertionError(self.kind)


class Decoder(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.table = nn.Embedding(32, WIDTH)
        self.layers = nn.ModuleList(Layer(kind) for _ in range(3))
        self.head = nn.Linear(WIDTH, 32)

    def forward(self, ids: Tensor) -> Tensor:
        states = first = self.table(ids)
        for layer in self.layers:
            states = layer(states, first)
        return self.head(states)


@pytest.mark.parametrize("kind", ["parallel", "post_norm"])
def test_other_ways_to_wire_a_layer(kind: str) -> None:
    graph = capture(Decoder(kind), torch.zeros(2, 5, dtype=torch.int64))
    assert not graph.context.notes
    parts = {"qkv": ["query", "key", "value"], "output": ["out", "ffn"]}
    for operation, names in parts.items():
        assert sorted(weights_of(graph, operation)) == sorted(
            f"layers.{layer}.{name}" for layer in range(3) for name in names
        )
        for node in graph.of(operation):
            if (weight := weight_of(node)) is not None:
                assert f"layers.{node.meta['layer']}." in weight.meta["path"]
    assert weights_of(graph, "head") == ["head"]


def test_layers_without_a_stream_of_their_own_are_left_alone() -> None:
    graph = capture(Decoder("from_the_first"), torch.zeros(2, 5, dtype=torch.int64))
    (note,) = graph.context.notes
    assert "no residual stream" in note
    assert not any("operation" in node.meta for node in graph.nodes)


@pytest.mark.parametrize(
    ("function", "inputs", "reason"),
    [
        (lambda ids: ids + 1, [torch.zeros(2, dtype=torch.int64)], "no hidden states"),
        (lambda states: states.relu(), [torch.zeros(2, 3)], "no layers"),
        # Two attentions side by side.
        (
            lambda s: (
                scaled_dot_product_attention(s, s, s) + scaled_dot_product_attention(s, s, -s)
            ),
            [torch.zeros(1, 2, 3, 4)],
            "do not depend on each other",
        ),
    ],
    ids=["integers", "elementwise", "side by side"],
)
def test_what_is_no_decoder_is_left_alone(
    function: Callable[..., Tensor], inputs: list[Tensor], reason: str
) -> None:
    graph = capture(function, *inputs)
    (note,) = graph.context.notes
    assert reason in note
    assert not any("operation" in node.meta for node in graph.nodes)
