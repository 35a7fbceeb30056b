"""Packing the rows of a share's tokens, and adding results back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import random_routing, relative_error
from test_experts_subset import HALF, contribution, reference_share, share_of
from test_ops import TOLERANCE, Case
from torch._subclasses import FakeTensorMode

from coxcompile.runtime.kernels import add_rows_, pack_rows

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def routed(tokens: int, top_k: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(hidden_states [tokens, 5], expert_ids, routing_weights) over 8 experts."""
    expert_ids, routing_weights = random_routing(tokens, 8, top_k, "uniform")
    return torch.randn(tokens, 5), expert_ids, routing_weights


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 50),
    top_k=st.integers(1, 8),
    own=st.lists(st.booleans(), min_size=8, max_size=8),
    int32=st.booleans(),
)
def test_packs_the_tokens_of_own_experts_in_order(
    tokens: int, top_k: int, own: list[bool], int32: bool
) -> None:
    hidden_states, expert_ids, routing_weights = routed(tokens, top_k)
    expert_ids = expert_ids.int() if int32 else expert_ids
    expert_slots = torch.where(torch.tensor(own), torch.arange(8), -1)
    packed = pack_rows(hidden_states, expert_ids, routing_weights, expert_slots)
    expected = [
        token for token in range(tokens) if any(own[expert] for expert in expert_ids[token])
    ]
    assert packed.count.dtype == packed.tokens.dtype == torch.int64
    assert packed.count.tolist() == [len(expected)]
    assert packed.tokens.shape == (tokens,)
    assert packed.tokens[: len(expected)].tolist() == expected
    for rows, source in zip(packed[2:], (hidden_states, expert_ids, routing_weights), strict=True):
        assert (rows.shape, rows.dtype) == (source.shape, source.dtype)
        assert torch.equal(rows[: len(expected)], source[expected])


def test_rows_beyond_the_count_repeat_a_token() -> None:
    hidden_states, expert_ids, routing_weights = routed(20)
    expert_slots = torch.full((8,), -1)
    packed = pack_rows(hidden_states, expert_ids, routing_weights, expert_slots)
    assert packed.count.tolist() == [0]
    assert torch.equal(packed.hidden_states, hidden_states[:1].expand(20, 5))
    assert torch.equal(packed.expert_ids, expert_ids[:1].expand(20, 2))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_adds_the_counted_rows_and_no_others(count: int, dtype: torch.dtype) -> None:
    tokens = torch.tensor([1, 3, 4, 5, 0, 2])
    before = torch.randn(6, 7)
    before[tokens[count:]] = -0.0
    results = torch.randn(6, 7).to(dtype)
    results[count:] = torch.nan
    tokens_given = tokens.clone()
    tokens_given[count:] = 2**40
    output = before.clone()
    add_rows_(output, results, tokens_given, torch.tensor([count]))
    expected = before.clone()
    expected[tokens[:count]] += results[:count].float()
    assert torch.equal(output.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 30])
def test_a_share_by_way_of_its_rows(tokens: int, dtype: torch.dtype) -> None:
    arguments = Case(tokens=tokens, dtype=dtype).arguments()
    share = share_of(arguments, HALF)
    routed_names = ("hidden_states", "expert_ids", "routing_weights")
    packed = pack_rows(*(share[name] for name in routed_names), share["expert_slots"])
    count = int(packed.count)
    rows = {name: getattr(packed, name)[:count] for name in routed_names}
    results = torch.full((tokens, 64), torch.nan)
    results[:count] = contribution(torch.ops.coxmoe.experts_subset_, share | rows)
    output = torch.zeros(tokens, 64)
    add_rows_(output, results, packed.tokens, packed.count)
    assert relative_error(output, reference_share(arguments, HALF)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [0, 20])
def test_no_value_is_waited_for(tokens: int) -> None:
    hidden_states, expert_ids, routing_weights = routed(tokens)
    given_tensors = (hidden_states, expert_ids, routing_weights, torch.arange(8) - 4)
    with FakeTensorMode() as mode:
        packed = pack_rows(*map(mode.from_tensor, given_tensors))
        output = torch.zeros(tokens, 5)
        add_rows_(output, packed.hidden_states, packed.tokens, packed.count)
