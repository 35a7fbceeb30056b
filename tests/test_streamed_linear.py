"""coxmoe::streamed_linear, and the pass that puts it into decode graphs."""

import pytest
import torch

import coxcompile.ops  # noqa: F401
from coxcompile.options import Options
from coxcompile.passes import PassContext
from coxcompile.passes.context import MoEBlock
from coxcompile.passes.normalize import normalize
from coxcompile.passes.stream_linears import stream_linears
from tests.numerics import relative_error

aten = torch.ops.aten


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 64), (3, 1, 70), (8, 33), (16, 256), (0, 40)])
@pytest.mark.parametrize("outputs", [1, 63, 130])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_linear(
    shape: tuple[int, ...], outputs: int, dtype: torch.dtype, with_bias: bool
) -> None:
    # Of other draws a single output's terms may cancel, and rounding exceeds what is left.
    torch.manual_seed(0)
    input = torch.randn(shape).to(dtype)
    weight = torch.randn(outputs, shape[-1]).to(dtype)
    bias = torch.randn(outputs).to(dtype) if with_bias else None
    result = torch.ops.coxmoe.streamed_linear(input, weight, bias)
    double_bias = None if bias is None else bias.double()
    expected = torch.nn.functional.linear(input.double(), weight.double(), double_bias)
    assert result.dtype == dtype
    assert result.shape == expected.shape
    if input.numel():
        assert relative_error(result, expected) < (1e-5 if dtype == torch.float32 else 5e-3)


def test_opcheck() -> None:
    torch.library.opcheck(
        torch.ops.coxmoe.streamed_linear.default,
        (torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)),
    )


@pytest.mark.parametrize(
    ("input", "weight", "named"),
    [
        (torch.randn(2, 7), torch.randn(5, 8), "input"),
        (torch.randn(2, 8).bfloat16(), torch.randn(5, 8), "input"),
        (torch.randn(2, 8), torch.randn(8, 5).t(), "weight"),
    ],
)
def test_wrong_arguments_are_named(input: torch.Tensor, weight: torch.Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=f"streamed_linear: {named}"):
        torch.ops.coxmoe.streamed_linear(input, weight)


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="the pass fires only with AVX512-BF16"
)
@pytest.mark.parametrize(
    ("tokens", "outputs", "dtype", "fires"),
    [
        (16, 1024, torch.bfloat16, True),
        (17, 1024, torch.bfloat16, False),
        (16, 1024, torch.float32, False),
        (16, 64, torch.bfloat16, True),
        (16, 63, torch.bfloat16, False),
    ],
)
def test_fires_only_where_it_pays(
    tokens: int, outputs: int, dtype: torch.dtype, fires: bool
) -> None:
    weight = torch.nn.Parameter(torch.randn(outputs, 512, dtype=dtype))
    inputs = [torch.randn(tokens, 512, dtype=dtype), weight]

    def model(input: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.nn.functional.linear(input, weight),)

    with torch.no_grad():
        traced = torch.fx.symbolic_trace(model)
        context = PassContext(Options(), inputs, ["input", "weight"])
        graph_module = normalize(traced, context)
        assert stream_linears(graph_module, context) is graph_module
        assert _count(graph_module) == 0, "fired in a graph without MoE blocks"
        context.blocks.append(_any_block(graph_module))
        stream_linears(graph_module, context)
    assert _count(graph_module) == fires


def _count(graph_module: torch.fx.GraphModule) -> int:
    target = torch.ops.coxmoe.streamed_linear.default
    return len(graph_module.graph.find_nodes(op="call_function", target=target))


def _any_block(graph_module: torch.fx.GraphModule) -> MoEBlock:
    node = graph_module.graph.find_nodes(op="placeholder")[0]
    return MoEBlock(
        *("path", "form", 2, 1, 4, 4, torch.bfloat16, "silu", "concatenated", False, 1.0, None),
        *([node] * 5),
        *(None, None, node),
    )
