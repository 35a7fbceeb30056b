"""The operator ``coxmoe::ipex_experts``: right, whatever the routing, and on no stale weights."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import coxcompile.ops  # noqa: F401  (defines the op)
from coxcompile.runtime.kernels import load_ipex
from coxcompile.runtime.kernels.ipex import _packed_experts
from tests.numerics import RoutingKind, random_routing, reference_experts, relative_error

EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 8, 2, 64, 96
TOLERANCE = 6e-3
"""Of bfloat16, whose unit roundoff is 2^-8; the routed sums are rounded twice on the way."""


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    load_ipex()


def weights_of(
    experts: int = EXPERTS, hidden: int = HIDDEN, intermediate: int = INTERMEDIATE, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """gate_up and down, as a model holds them."""
    generator = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(experts, 2 * intermediate, hidden, generator=generator) / hidden**0.5
    down = torch.randn(experts, hidden, intermediate, generator=generator) / intermediate**0.5
    gate_up, down = (nn.Parameter(w.bfloat16(), requires_grad=False) for w in (gate_up, down))
    return gate_up, down


def hidden_states_of(tokens: int, hidden: int = HIDDEN) -> Tensor:
    return torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(1)).bfloat16()


def error_of(arguments: tuple[Tensor, ...]) -> float:
    actual = torch.ops.coxmoe.ipex_experts(*arguments)
    assert actual.dtype == torch.bfloat16
    return relative_error(actual, reference_experts(*arguments))


@pytest.mark.parametrize("kind", ["uniform", "skewed", "one_expert", "ragged"])
@pytest.mark.parametrize("tokens", [2, 17, 300])
def test_any_routing(kind: RoutingKind, tokens: int) -> None:
    routing = random_routing(tokens, EXPERTS, TOP_K, kind)
    assert error_of((hidden_states_of(tokens), *routing, *weights_of())) < TOLERANCE


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "hidden", "intermediate"),
    [(1, 8, 2, 64, 96), (5, 1, 1, 32, 32), (40, 60, 6, 128, 224), (33, 3, 3, 96, 32)],
)
def test_any_size(tokens: int, experts: int, top_k: int, hidden: int, intermediate: int) -> None:
    routing = random_routing(tokens, experts, top_k, "uniform")
    weights = weights_of(experts, hidden, intermediate)
    assert error_of((hidden_states_of(tokens, hidden), *routing, *weights)) < TOLERANCE


def test_no_tokens() -> None:
    routing = random_routing(0, EXPERTS, TOP_K, "uniform")
    result = torch.ops.coxmoe.ipex_experts(hidden_states_of(0), *routing, *weights_of())
    assert result.shape == (0, HIDDEN)


def test_what_is_not_contiguous_and_other_integers_and_weights() -> None:
    expert_ids, routing_weights = random_routing(9, EXPERTS, TOP_K, "uniform")
    hidden_states = hidden_states_of(18)[::2]
    routing = (expert_ids.int().t().contiguous().t(), routing_weights.bfloat16())
    assert error_of((hidden_states, *routing, *weights_of())) < TOLERANCE


def test_weights_are_packed_once_while_they_stay_as_they_are() -> None:
    gate_up, down = weights_of()
    first = _packed_experts.of(gate_up, down)
    assert _packed_experts.of(gate_up, down) is first
    assert first.gate_up.nbytes + first.down.nbytes == gate_up.nbytes + down.nbytes


@pytest.mark.parametrize("which", ["gate_up", "down"])
@pytest.mark.parametrize("how", ["in place", "data"])
def test_changed_weights_are_packed_again(which: str, how: str) -> None:
    weights = dict(zip(("gate_up", "down"), weights_of(), strict=True))
    fixed = (hidden_states_of(16), *random_routing(16, EXPERTS, TOP_K, "uniform"))
    before = torch.ops.coxmoe.ipex_experts(*fixed, *weights.values())
    changed = weights[which]
    if how == "in place":
        changed.mul_(-2)
    else:
        changed.data = -2 * changed.data
    assert error_of((*fixed, *weights.values())) < TOLERANCE
    after = torch.ops.coxmoe.ipex_experts(*fixed, *weights.values())
    assert relative_error(after, before) > 0.5


def test_packed_copies_go_with_the_weights() -> None:
    gate_up, down = weights_of()
    copy = weakref.ref(_packed_experts.of(gate_up, down).gate_up)
    assert copy() is not None
    del gate_up
    gc.collect()
    assert copy() is None


@pytest.mark.parametrize("wrong", [-1, EXPERTS])
def test_an_expert_that_is_not_there(wrong: int) -> None:
    expert_ids, routing_weights = random_routing(4, EXPERTS, TOP_K, "uniform")
    expert_ids[2, 1] = wrong
    with pytest.raises(IndexError, match=rf"ipex_experts: expert_ids holds {wrong}"):
        torch.ops.coxmoe.ipex_experts(
            hidden_states_of(4), expert_ids, routing_weights, *weights_of()
        )


def test_more_tokens_than_the_operator_can_count() -> None:
    tokens = 1 << 24
    arguments = (
        hidden_states_of(1).expand(tokens, -1),
        torch.zeros(1, TOP_K, dtype=torch.int64).expand(tokens, -1),
        torch.ones(1, TOP_K).expand(tokens, -1),
    )
    with pytest.raises(ValueError, match=f"hidden_states has {tokens} tokens"):
        torch.ops.coxmoe.ipex_experts(*arguments, *weights_of())


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        weights = weights_of()
    routing = random_routing(4, EXPERTS, TOP_K, "uniform")
    with pytest.raises(ValueError, match="gate_up was made in inference mode"):
        torch.ops.coxmoe.ipex_experts(hidden_states_of(4), *routing, *weights)
