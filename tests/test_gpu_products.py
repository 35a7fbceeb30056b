"""The GPU's two projections against float64: every storage, layout and activation, interpreted."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coxcompile.runtime.emulated.triton_driver import triton_target
from coxcompile.runtime.kernels.gpu.device import current_device
from coxcompile.runtime.kernels.gpu.launches import combine_, down_, gate_up_
from coxcompile.runtime.kernels.gpu.routing import route
from tests.gpu_cases import ExpertsCase, configuration
from tests.numerics import relative_error
from tests.triton_checks import checked

BOUND = 1e-5


def require_right(
    case: ExpertsCase,
    *,
    tokens: int = 21,
    top_k: int = 2,
    target: str = "sm_90",
    block_tokens: int = 16,
    **product: Any,
) -> None:
    """Each stage against float64 of its own inputs, with float32 results; every access checked."""
    ids, routing_weights = case.routing(tokens, top_k)
    hidden_states = case.random(tokens, case.hidden)
    given_activated = case.random(tokens * top_k, case.intermediate)
    activated = torch.full((tokens * top_k, case.intermediate), float("nan"))
    contributions = torch.full((tokens * top_k, case.hidden), float("nan"))
    output = torch.full((tokens, case.hidden), float("nan"))
    chosen = configuration(block_tokens, **product)
    with triton_target(target):
        weights = case.weights()
        with checked(extra_tensors=weights.owners):
            routing = route(ids, weights.addresses[0], block_tokens)
            device = current_device()
            gate_up_(activated, hidden_states, weights, routing, case.gating, top_k, chosen, device)
            down_(contributions, given_activated, routing_weights, weights, routing, chosen, device)
            combine_(output, contributions, ids, weights, add=False)
    order = routing.sorted_choices.long()
    experts = ids.flatten()[order]
    assert relative_error(activated, case.activated(hidden_states[order // top_k], experts)) < BOUND
    expected = torch.empty(contributions.shape, dtype=torch.float64)
    factors = routing_weights.double().flatten()[order, None]
    expected[order] = case.outputs(given_activated, experts) * factors
    assert relative_error(contributions, expected) < BOUND
    sums = contributions.double().view(tokens, top_k, -1).sum(1)
    assert relative_error(output, sums) < BOUND


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("gate_layout", ["concatenated", "interleaved"])
@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
def test_layouts(bias: bool, transposed: bool, gate_layout: str, descriptors: bool) -> None:
    case = ExpertsCase(bias=bias, transposed=transposed, gate_layout=gate_layout)
    require_right(case, descriptors=descriptors)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "swigluoai"])
@pytest.mark.parametrize("gate_layout", ["concatenated", "interleaved"])
def test_activations(activation: str, gate_layout: str) -> None:
    case = ExpertsCase(activation=activation, gate_layout=gate_layout, bias=True)
    require_right(case)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_dtypes(dtype: torch.dtype, transposed: bool) -> None:
    require_right(ExpertsCase(dtype=dtype, transposed=transposed, bias=True))


@pytest.mark.parametrize("format", ["int8", "int4", "float8"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("gate_layout", ["concatenated", "interleaved"])
@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
def test_quantised_weights(format: Any, groups: int, gate_layout: str, descriptors: bool) -> None:
    case = ExpertsCase(
        format=format, groups=groups, gate_layout=gate_layout, hidden=64, intermediate=32, bias=True
    )
    require_right(case, descriptors=descriptors, block_inputs=32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("format", ["int8", "int4", "float8"])
def test_quantised_weights_with_other_tokens(dtype: torch.dtype, format: Any) -> None:
    require_right(ExpertsCase(dtype=dtype, format=format))


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_100", "sm_120", "gfx942"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_targets(target: str, dtype: torch.dtype) -> None:
    """What is interpreted is the same for all; that each is compiled on the way is the point."""
    require_right(ExpertsCase(dtype=dtype), target=target)


@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
def test_persistent_programs_have_several_tiles(descriptors: bool) -> None:
    require_right(ExpertsCase(experts=12), tokens=50, persistent=True, descriptors=descriptors)


@pytest.mark.parametrize("block_tokens", [32, 64, 128])
def test_blocks_of_more_tokens_than_there_are(block_tokens: int) -> None:
    require_right(ExpertsCase(), block_tokens=block_tokens, block_outputs=64, block_inputs=64)


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 25), st.integers(8, 40)),
    data=st.data(),
)
def test_any_sizes(sizes: tuple[int, int, int, int], data: st.DataObject) -> None:
    experts, hidden, intermediate, tokens = sizes
    case = ExpertsCase(
        experts=experts,
        hidden=hidden,
        intermediate=intermediate,
        transposed=data.draw(st.booleans()),
        gate_layout=data.draw(st.sampled_from(["concatenated", "interleaved"])),
        bias=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 1000)),
    )
    require_right(case, tokens=tokens, top_k=data.draw(st.integers(1, experts)))
