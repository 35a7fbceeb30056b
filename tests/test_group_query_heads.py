"""Decoding's attention: a group's query heads as rows, in place of repeated keys and values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.functional import scaled_dot_product_attention

from coxcompile.inspect.dump import readable
from coxcompile.options import Options
from coxcompile.passes import PassContext
from coxcompile.passes.context import MoEBlock
from coxcompile.passes.group_query_heads import group_query_heads
from coxcompile.passes.normalize import normalize
from tests.models import build
from tests.numerics import relative_error

aten = torch.ops.aten
BATCH, KV_HEADS, LENGTH, WIDTH = 3, 2, 10, 8


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


def repeated(states: Tensor, group: int) -> Tensor:
    """As transformers' repeat_kv writes it."""
    batch, heads, length, width = states.shape
    states = states[:, :, None, :, :].expand(batch, heads, group, length, width)
    return states.reshape(batch, heads * group, length, width)


def tiled(states: Tensor, group: int) -> Tensor:
    batch, heads, length, width = states.shape
    states = states[:, None].expand(batch, group, heads, length, width)
    return states.reshape(batch, heads * group, length, width)


def decode(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    group = query.shape[1] // key.shape[1]
    return scaled_dot_product_attention(query, repeated(key, group), repeated(value, group), mask)


def random_inputs(
    group: int, *, batch: int = BATCH, length: int = LENGTH, queries: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, KV_HEADS * group, queries, WIDTH),
        torch.randn(batch, KV_HEADS, length, WIDTH),
        torch.randn(batch, KV_HEADS, length, WIDTH),
    )


def random_mask(*shape: int, dtype: torch.dtype = torch.bool) -> Tensor:
    if dtype != torch.bool:
        return torch.randn(shape, dtype=dtype)
    mask = torch.rand(shape) < 0.5
    mask[..., 0] = True
    return mask


class Compiled:
    """``function`` compiled by normalize and the pass alone; keeps the graphs of both."""

    def __init__(self, function: Callable[..., Any], *, blocks: bool = True) -> None:
        self.before: list[str] = []
        self.graph_modules: list[GraphModule] = []
        self._blocks = [cast(MoEBlock, "any")] if blocks else []
        self._compiled = torch.compile(function, backend=self._backend, fullgraph=True)

    def __call__(self, *inputs: Any) -> Any:
        with torch.no_grad():
            return self._compiled(*inputs)

    def _backend(self, graph_module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        context = PassContext(Options(), inputs, [""] * len(inputs), self._blocks)
        normalized = normalize(graph_module, context)
        self.before.append(readable(normalized))
        grouped = group_query_heads(normalized, context)
        grouped.graph.lint()
        grouped.recompile()
        self.graph_modules.append(grouped)
        return grouped.forward

    @property
    def after(self) -> list[str]:
        return [readable(graph_module) for graph_module in self.graph_modules]

    @property
    def attention(self) -> Node:
        (graph_module,) = self.graph_modules
        target = aten.scaled_dot_product_attention.default
        (attention,) = graph_module.graph.find_nodes(op="call_function", target=target)
        return attention


MASKS = {
    "none": lambda heads: None,
    "bool": lambda heads: random_mask(1, 1, 1, LENGTH),
    "bool of each sequence": lambda heads: random_mask(BATCH, 1, 1, LENGTH),
    "float of each sequence": lambda heads: random_mask(BATCH, 1, 1, LENGTH, dtype=torch.float32),
    "of fewer dimensions": lambda heads: random_mask(1, LENGTH),
}


@pytest.mark.parametrize("group", [2, 8])
@pytest.mark.parametrize("mask", MASKS)
def test_equals_attention_over_repeated_heads(mask: str, group: int) -> None:
    inputs = (*random_inputs(group), MASKS[mask](KV_HEADS * group))
    compiled = Compiled(decode)
    assert relative_error(compiled(*inputs), decode(*inputs)) < 1e-5
    for operator in ("aten.expand.", "aten.clone.", "aten._unsafe_view."):
        assert (compiled.before[0].count(operator), compiled.after[0].count(operator)) == (2, 0)
    query, key, value = compiled.attention.args[:3]
    assert query.meta["val"].shape == (BATCH, KV_HEADS, group, WIDTH)
    assert key.meta["val"].shape == value.meta["val"].shape == (BATCH, KV_HEADS, LENGTH, WIDTH)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_mask_expanded_over_heads_is_used_unexpanded(dtype: torch.dtype) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return decode(query, key, value, mask.expand(BATCH, query.shape[1], 1, LENGTH))

    inputs = (*random_inputs(2), random_mask(BATCH, 1, 1, LENGTH, dtype=dtype))
    compiled = Compiled(attend)
    assert relative_error(compiled(*inputs), attend(*inputs)) < 1e-5
    assert compiled.after[0].count("aten.expand.") == 0


def test_scale_and_a_width_of_the_values_own_are_kept() -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, repeated(key, 2), repeated(value, 2), scale=0.7)

    query, key, value = random_inputs(2)
    inputs = (query, key, value[..., :5])
    compiled = Compiled(attend)
    assert relative_error(compiled(*inputs), attend(*inputs)) < 1e-5
    assert compiled.after[0].count("aten.clone.") == 0


def test_repeated_keys_with_another_use_stay() -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        keys = repeated(key, 2)
        return scaled_dot_product_attention(query, keys, repeated(value, 2)), keys

    inputs = random_inputs(2)
    compiled = Compiled(attend)
    for ours, theirs in zip(compiled(*inputs), attend(*inputs), strict=True):
        assert relative_error(ours, theirs) < 1e-5
    clones = [text.count("aten.clone.") for text in (compiled.before[0], compiled.after[0])]
    assert clones == [2, 1]


def test_values_of_the_new_nodes_are_what_they_compute() -> None:
    class Checked(Interpreter):
        def run_node(self, node: Node) -> Any:
            result = super().run_node(node)
            if isinstance(result, Tensor):
                checked.append(node.name)
                value = node.meta["val"]
                assert isinstance(value, torch._subclasses.FakeTensor)
                assert (result.shape, result.dtype) == (value.shape, value.dtype), (
                    node.format_node()
                )
                assert result.stride() == value.stride(), node.format_node()
            return result

    checked: list[str] = []
    inputs = (*random_inputs(4), random_mask(BATCH, 1, 1, LENGTH))
    compiled = Compiled(decode)
    compiled(*inputs)
    Checked(compiled.graph_modules[0]).run(*inputs)
    assert compiled.attention.name in checked


def test_dynamic_shapes() -> None:
    compiled = Compiled(decode)
    for batch, length in ((3, 10), (5, 12), (2, 33)):
        query, key, value = random_inputs(4, batch=batch, length=length)
        inputs = (query, key, value, random_mask(batch, 1, 1, length))
        for tensor in inputs:
            torch._dynamo.mark_dynamic(tensor, 0)
        for tensor, dimension in ((key, 2), (value, 2), (inputs[3], 3)):
            torch._dynamo.mark_dynamic(tensor, dimension)
        assert relative_error(compiled(*inputs), decode(*inputs)) < 1e-5
    assert len(compiled.graph_modules) == 1, "sizes became constants"
    query, key = compiled.attention.args[:2]
    assert query.meta["val"].shape[1:] == (KV_HEADS, 4, WIDTH)
    (output,) = compiled.attention.users
    for size in (query.meta["val"].shape[0], key.meta["val"].shape[2], output.meta["val"].shape[0]):
        assert isinstance(size, torch.SymInt)
    assert compiled.after[0].count("aten.clone.") == 0


def attend_tiled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, tiled(key, 2), tiled(value, 2))


def attend_repeat(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key.repeat(1, 2, 1, 1), value.repeat(1, 2, 1, 1))


def attend_unequal_groups(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, repeated(key, 4), repeated(repeated(value, 2)[:], 2))


def attend_repeated_keys_only(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, repeated(key, 2), torch.cat([value, value], 1))


def attend_repeated_length(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    def repeated_twice(states: Tensor) -> Tensor:
        return repeated(states, 4).reshape(BATCH, 2 * KV_HEADS, 2 * LENGTH, WIDTH)

    return scaled_dot_product_attention(query, repeated_twice(key), repeated_twice(value), mask)


def attend_causally(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    keys, values = repeated(key, 2), repeated(value, 2)
    return scaled_dot_product_attention(query, keys, values, is_causal=True)


def attend_with_dropout(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    # Values of 0 leave nothing to chance.
    keys, values = repeated(key, 2), repeated(value * 0, 2)
    return scaled_dot_product_attention(query, keys, values, dropout_p=0.5)


def attend_enabling_groups(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    keys, values = repeated(key, 2), repeated(value, 2)
    return scaled_dot_product_attention(query, keys, values, enable_gqa=True)


def attend_per_head(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return decode(query, key, value, mask.expand(BATCH, -1, -1, -1))


@pytest.mark.parametrize(
    ("attend", "inputs"),
    [
        pytest.param(decode, random_inputs(2, queries=2), id="two queries"),
        pytest.param(decode, random_inputs(1), id="groups of one"),
        pytest.param(
            decode,
            (*random_inputs(2), random_mask(1, 4, 1, LENGTH, dtype=torch.float32)),
            id="mask per head",
        ),
        pytest.param(
            attend_per_head,
            (*random_inputs(2), random_mask(1, 4, 1, LENGTH, dtype=torch.float32)),
            id="mask per head, expanded",
        ),
        pytest.param(attend_tiled, random_inputs(2), id="tiled"),
        pytest.param(attend_repeat, random_inputs(2), id="repeat"),
        pytest.param(attend_unequal_groups, random_inputs(4), id="unequal groups"),
        pytest.param(attend_repeated_keys_only, random_inputs(2), id="keys only"),
        pytest.param(
            attend_repeated_length,
            (*random_inputs(2), random_mask(1, 1, 1, 2 * LENGTH)),
            id="repeated heads and length",
        ),
        pytest.param(attend_causally, random_inputs(2), id="causal"),
        pytest.param(attend_with_dropout, random_inputs(2), id="dropout"),
        pytest.param(attend_enabling_groups, random_inputs(2), id="enable_gqa"),
    ],
)
def test_leaves_alone(attend: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    compiled = Compiled(attend)
    assert relative_error(compiled(*inputs), attend(*inputs)) < 1e-5
    assert compiled.after == compiled.before


def test_leaves_a_graph_without_moe_blocks_alone() -> None:
    compiled = Compiled(decode, blocks=False)
    compiled(*random_inputs(2))
    assert compiled.after == compiled.before


@pytest.mark.parametrize(
    ("family", "dynamic"), [("qwen3_moe", False), ("qwen3_moe", True), ("mixtral", False)]
)
def test_decoding_with_a_static_cache(family: str, dynamic: bool, tmp_path: Path) -> None:
    from transformers import StaticCache

    model = build(family, dtype=torch.float32)
    compiled = torch.compile(
        model, backend="coxmoe", fullgraph=True, dynamic=dynamic, options={"dump": tmp_path}
    )
    ids = torch.randint(0, 100, (2, 14), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 14, dtype=torch.int64)
    mask[0, :3] = 0
    caches = [StaticCache(config=model.config, max_cache_len=32) for _ in range(2)]
    for cache in caches:
        cache.early_initialization(2, 2, 16, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        for step, (start, end) in enumerate([(0, 12), (12, 13), (13, 14)]):
            inputs = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end]}
            expected = model(**inputs, past_key_values=caches[0]).logits
            logits = compiled(**inputs, past_key_values=caches[1]).logits
            assert relative_error(logits, expected) < 1e-5, step
    graphs = sorted(tmp_path.iterdir())
    prefill = (graphs[0] / "3_group_query_heads.txt").read_text()
    assert prefill == (graphs[0] / "2_coalesce.txt").read_text()
    before = (graphs[-1] / "2_coalesce.txt").read_text()
    after = (graphs[-1] / "3_group_query_heads.txt").read_text()
    for operator in ("aten.clone.", "aten._unsafe_view."):
        assert (before.count(operator), after.count(operator)) == (4, 0)
    assert after.count("float32[2, 2, 2, 16] = aten.scaled_dot_product_attention.") == 2
