"""Micro-batches: the graph of the parts computes what the graph of the whole batch does."""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves
from transformers import StaticCache

from coxcompile.inspect.names import input_names
from coxcompile.options import Options
from coxcompile.passes import PassContext
from coxcompile.passes.coalesce import coalesce
from coxcompile.passes.context import Placement
from coxcompile.passes.find_moe import find_moe
from coxcompile.passes.group_query_heads import group_query_heads
from coxcompile.passes.micro_batch import micro_batch
from coxcompile.passes.normalize import normalize
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import StagePlan
from tests.models import FAMILIES, build
from tests.numerics import relative_error

aten = torch.ops.aten
EXPERTS = torch.ops.coxmoe.coalesced_experts.default
BATCH = 4
TOLERANCE = 1e-5
MODEL = ModelSpec(
    name="any", layers=1, hidden=1, query_heads=1, kv_heads=1, head_dim=1, experts=1, top_k=1,
    expert_dim=1, vocabulary=1,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tensors this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


def placement(micro: int, *, block: int = 64, coalesced: bool = True) -> Placement:
    plan = StagePlan(
        qkv="gpu",
        attention="cpu",
        output="gpu",
        micro_batch=micro,
        block=block,
        coalesced=coalesced,
        experts=(),
    )
    return Placement(MODEL, "decode", plan)


class Capture:
    """A backend that keeps the graph after coalesce and its inputs, and runs the graph as it is."""

    graph_module: GraphModule
    context: PassContext
    inputs: Sequence[Any]

    def __call__(self, graph_module: GraphModule, example_inputs: Sequence[Any]) -> Any:
        names = input_names(graph_module)
        self.context = PassContext(Options.from_user(None), example_inputs, names)
        for run_pass in (normalize, find_moe, coalesce, group_query_heads):
            graph_module = run_pass(graph_module, self.context)
        graph_module.recompile()
        self.graph_module = graph_module

        def run(*inputs: Any) -> Any:
            self.inputs = copied(inputs)
            return graph_module(*inputs)

        return run

    def divided(self, placement: Placement | None) -> tuple[GraphModule, list[str]]:
        """The graph in micro-batches, and the notes."""
        context = copy.copy(self.context)
        context.placement = placement
        context.notes = []
        graph_module = micro_batch(copy.deepcopy(self.graph_module), context)
        graph_module.graph.lint()
        graph_module.recompile()
        return graph_module, context.notes

    def results(self, graph_module: GraphModule) -> list[Tensor]:
        """What the graph returns and every input as it leaves it, from the same inputs on."""
        inputs = copied(self.inputs)
        with torch.no_grad():
            outputs = Checked(graph_module).run(*inputs)
        return [value for value in (*outputs, *inputs) if isinstance(value, Tensor)]


def copied(inputs: Sequence[Any]) -> list[Any]:
    """Parameters as they are, the rest copied."""
    return [
        value.clone()
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        else value
        for value in inputs
    ]


def capture(model: Any, *args: Any, dynamic: bool = False, **kwargs: Any) -> Capture:
    captured = Capture()
    with torch.no_grad():
        torch.compile(model, backend=captured, dynamic=dynamic, fullgraph=True)(*args, **kwargs)
    return captured


def capture_family(family: str, length: int, batch: int = BATCH, layers: int = 2) -> Capture:
    """The graph of ``length`` tokens for each sequence, behind 12 others in a static cache."""
    model = build(family, dtype=torch.float32, layers=layers)
    cache = StaticCache(config=model.config, max_cache_len=32)
    token_ids = torch.randint(0, 100, (batch, 12))
    with torch.no_grad():
        model(input_ids=token_ids, past_key_values=cache)
    return capture(model, input_ids=token_ids[:, :length], past_key_values=cache)


class Checked(Interpreter):
    """Runs a graph and compares every value with its node's fake one."""

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function":
            for value, fake in zip(tree_leaves(result), tree_leaves(n.meta["val"]), strict=True):
                assert (value.shape, value.dtype) == (fake.shape, fake.dtype), n.name
        return result


def assert_same_results(captured: Capture, divided: GraphModule) -> None:
    for whole, parts in zip(
        captured.results(captured.graph_module), captured.results(divided), strict=True
    ):
        assert parts.dtype == whole.dtype
        assert parts.shape == whole.shape
        if whole.is_floating_point():
            assert relative_error(parts, whole) < TOLERANCE
        else:
            assert torch.equal(parts, whole)


def calls(graph_module: GraphModule, target: Any) -> list[Node]:
    return list(graph_module.graph.find_nodes(op="call_function", target=target))


def following(sources: Sequence[Node]) -> set[Node]:
    """The calls that depend on ``sources``, and these."""
    reached = set(sources)
    for node in sources[0].graph.nodes:
        if node.op == "call_function" and not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return reached


def assert_divided(
    captured: Capture, divided: GraphModule, sizes: Sequence[Sequence[int]], coalesced: bool
) -> None:
    """``sizes``: of the micro-batches, for each block."""
    flat = [size for block in sizes for size in block]
    embeddings = calls(divided, aten.embedding.default)
    assert [node.meta["val"].shape[0] for node in embeddings] == flat
    assert [node.meta["micro_batch"] for node in embeddings] == list(range(len(flat)))
    blocks = [number for number, block in enumerate(sizes) for _ in block]
    assert [node.meta["block"] for node in embeddings] == blocks

    experts = calls(divided, EXPERTS)
    times = len(sizes) if coalesced else len(flat)
    assert len(experts) == times * len(calls(captured.graph_module, EXPERTS)) > 0
    assert all(("micro_batch" in node.meta) == (not coalesced) for node in experts)

    returned = divided.graph.output_node().all_input_nodes
    for node in following(embeddings) - set(experts) - set(returned):
        if "micro_batch" not in node.meta:
            assert node.target is aten.cat.default
            assert next(iter(node.users)).target is EXPERTS
            assert node.meta["block"] == next(iter(node.users)).meta["block"]
    for number in range(len(flat)):
        others = {
            source.meta["micro_batch"]
            for node in divided.graph.nodes
            if node.meta.get("micro_batch") == number
            for source in node.all_input_nodes
            if "micro_batch" in source.meta
        }
        assert others == {number}


def assert_caches_stay_in_place(captured: Capture, divided: GraphModule, parts: int) -> None:
    """Each micro-batch writes the view of the cache that it reads; counters are written once."""
    cache_writes, counter_writes = 0, 0
    for node in calls(divided, aten.copy_.default):
        target, _ = node.args
        assert isinstance(target, Node)
        if target.op == "placeholder":
            assert target.meta["val"].dim() == 0
            counter_writes += 1
            continue
        cache_writes += 1
        cache = target.args[0]
        assert target.target is aten.slice.Tensor
        assert isinstance(cache, Node)
        assert cache.op == "placeholder"
        assert target.meta["micro_batch"] == node.meta["micro_batch"]
        assert len(target.users) > 1
        assert len(cache.users) == parts
    before = len(calls(captured.graph_module, aten.copy_.default))
    assert cache_writes == parts * (before - counter_writes) > 0


PLANS = [
    (1, 4, True, [[1, 1, 1, 1]]),
    (3, 4, True, [[3, 1]]),
    (1, 2, True, [[1, 1], [1, 1]]),
    (2, 3, True, [[2, 1], [1]]),
    (2, 4, False, [[2, 2]]),
    (3, 64, False, [[3, 1]]),
]


@pytest.mark.parametrize("length", [12, 1], ids=["prefill", "decode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, length: int) -> None:
    # Two layers where the first has no experts or another kind of attention.
    captured = capture_family(family, length, layers=2 if family in ("glm4_moe", "gpt_oss") else 1)
    # Every family with half of the plans; which one, differs between prefill and decode.
    for micro, block, coalesced, sizes in PLANS[length == 1 :: 2]:
        divided, notes = captured.divided(placement(micro, block=block, coalesced=coalesced))
        assert notes == []
        assert_divided(captured, divided, sizes, coalesced)
        assert_caches_stay_in_place(captured, divided, sum(map(len, sizes)))
        assert_same_results(captured, divided)


@pytest.mark.parametrize("family", ["deepseek_v2", "gpt_oss"])
def test_as_many_sequences_as_tokens_heads_and_layers(family: str) -> None:
    captured = capture_family(family, 4, batch=4)
    divided, notes = captured.divided(placement(3))
    assert notes == []
    assert_divided(captured, divided, [[3, 1]], coalesced=True)
    assert_same_results(captured, divided)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(BATCH, 1, 5, 5).tril().bool(),
        torch.randn(BATCH, 1, 5, 5),
        torch.randn(1, 1, 5, 5),
        torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
    ],
    ids=["bool", "float", "shared", "padding"],
)
def test_masks_of_the_user(mask: Tensor) -> None:
    model = build("qwen3_moe", dtype=torch.float32, layers=1)
    token_ids = torch.randint(0, 100, (BATCH, 5))
    captured = capture(model, input_ids=token_ids, attention_mask=mask, use_cache=False)
    divided, notes = captured.divided(placement(1, block=2))
    assert notes == []
    assert_divided(captured, divided, [[1, 1], [1, 1]], coalesced=True)
    assert_same_results(captured, divided)


def test_hidden_states_in_place_of_token_ids() -> None:
    model = build("mixtral", dtype=torch.float32, layers=1)
    captured = capture(model, inputs_embeds=torch.randn(BATCH, 5, 64), use_cache=False)
    divided, notes = captured.divided(placement(1))
    assert notes == []
    assert len(calls(divided, aten.scaled_dot_product_attention.default)) == BATCH
    assert len(calls(divided, EXPERTS)) == 1
    assert_same_results(captured, divided)


def test_copies_keep_what_other_passes_wrote() -> None:
    captured = capture_family("qwen3_moe", 1, layers=1)
    for number, node in enumerate(calls_of_all_ops(captured.graph_module)):
        node.meta.update(operation=node.name, layer=number, device="cpu")
    divided, _ = captured.divided(placement(1))
    originals = {node.name: node.meta for node in calls_of_all_ops(captured.graph_module)}
    for node in calls_of_all_ops(divided):
        original = originals[node.meta["operation"]]
        assert (node.meta["layer"], node.meta["device"]) == (original["layer"], "cpu")
    (experts,) = calls(divided, EXPERTS)
    for joined in experts.all_input_nodes[:3]:
        (first, *_) = joined.all_input_nodes
        assert joined.meta["operation"] == first.meta["operation"]
    for part in experts.users:
        (consumer,) = part.users
        assert part.meta["operation"] == consumer.meta["operation"]


def calls_of_all_ops(graph_module: GraphModule) -> list[Node]:
    return [node for node in graph_module.graph.nodes if node.op == "call_function"]


class Mixing(nn.Module):
    """An embedding, something done to its result [B, S, 8], and a linear."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding, self.linear, self.mix = nn.Embedding(100, 8), nn.Linear(8, 8), mix

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.linear(self.mix(self.embedding(token_ids)))


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        (lambda x: x + x.mean(0), r"mean \(aten.mean.dim\) reduces along the batch"),
        (lambda x: x.flip(0), r"flip \(aten.flip.default\) works along the batch"),
        (lambda x: x.cumsum(0), "works along the batch"),
        (lambda x: x + x.transpose(0, 1), "add .* combines sequences with each other"),
        (lambda x: x - x.max(), "max.* has no rule"),
        (lambda x: x + torch.rand_like(x), "rand_like .* draws random numbers"),
        (lambda x: x[[1, 0, 3, 2]], "reads or writes at indices along the batch"),
    ],
)
def test_graphs_that_mix_sequences_stay_whole(mix: Any, reason: str) -> None:
    captured = capture(Mixing(mix), torch.randint(0, 100, (BATCH, BATCH)))
    divided, (note,) = captured.divided(placement(1))
    assert note.startswith("The graph stays one micro-batch: ")
    assert re.search(reason, note)
    assert divided.code == captured.graph_module.code
    path = following(calls(divided, aten.embedding.default))
    assert {node.meta["micro_batch"] for node in path} == {0}


def test_one_micro_batch_is_the_graph_as_it_is() -> None:
    for captured in (capture_family("olmoe", 1, layers=1), capture_family("olmoe", 1, 1, layers=1)):
        for coalesced in (True, False):
            divided, notes = captured.divided(placement(4, coalesced=coalesced))
            assert notes == []
            assert divided.code == captured.graph_module.code
            path = following(calls(divided, aten.embedding.default))
            assert {node.meta["block"] for node in path} == {0}
            experts = [node for node in path if "micro_batch" not in node.meta]
            assert [node.target for node in experts] == [EXPERTS] * coalesced
            torch._dynamo.reset()


def test_symbolic_batches_stay_whole() -> None:
    captured = capture(Mixing(lambda x: x), torch.randint(0, 100, (BATCH, 5)), dynamic=True)
    divided, (note,) = captured.divided(placement(1))
    assert "its batch is of symbolic size" in note
    assert divided.code == captured.graph_module.code


def test_graphs_without_sequences_stay_whole() -> None:
    captured = capture(nn.Linear(8, 8), torch.randn(BATCH, 8))
    divided, (note,) = captured.divided(placement(1))
    assert "embeds no token ids" in note
    assert divided.code == captured.graph_module.code


def test_without_a_placement_nothing_happens() -> None:
    captured = capture(Mixing(lambda x: x), torch.randint(0, 100, (BATCH, 5)))
    divided, notes = captured.divided(None)
    assert (divided.code, notes) == (captured.graph_module.code, [])
    assert not any("micro_batch" in node.meta for node in divided.graph.nodes)
