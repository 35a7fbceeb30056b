"""Sorting choices by expert on the device, interpreted, against sorting them on the host."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coxcompile.runtime.emulated.triton_driver import triton_target
from coxcompile.runtime.kernels.gpu.routing import Routing, route
from tests.triton_checks import checked


def routed(ids: Tensor, here: list[bool], block_tokens: int = 16) -> Routing:
    """Routing over experts that are here or not, with every access checked."""
    addresses = torch.tensor(here, dtype=torch.int64) * 4096
    with triton_target("sm_90"), checked():
        return route(ids, addresses, block_tokens)


def require_right(ids: Tensor, here: list[bool], block_tokens: int = 16) -> None:
    routing = routed(ids, here, block_tokens)
    flat = ids.flatten().tolist()
    chosen = [
        [choice for choice, expert in enumerate(flat) if expert == wanted and here[wanted]]
        for wanted in range(len(here))
    ]
    ends = routing.ends.tolist()
    assert ends == torch.tensor([len(own) for own in chosen]).cumsum(0).tolist()
    assert routing.sorted_choices.tolist()[: ends[-1]] == [c for own in chosen for c in own]
    tiles = [
        (expert, end - len(own) + first)
        for expert, (own, end) in enumerate(zip(chosen, ends, strict=True))
        for first in range(0, len(own), block_tokens)
    ]
    count = int(routing.tile_count)
    assert count <= routing.most_tiles
    found = zip(routing.tile_experts.tolist(), routing.tile_starts.tolist(), strict=True)
    assert list(found)[:count] == tiles


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 150),
    top_k=st.integers(1, 4),
    here=st.lists(st.booleans(), min_size=1, max_size=40),
    block_tokens=st.sampled_from([16, 32, 64]),
    skew=st.floats(0.3, 5.0),
    seed=st.integers(0, 1000),
)
def test_choices_are_sorted_and_tiled(
    tokens: int, top_k: int, here: list[bool], block_tokens: int, skew: float, seed: int
) -> None:
    places = torch.rand(tokens, top_k, generator=torch.Generator().manual_seed(seed)) ** skew
    require_right((places * len(here)).long(), here, block_tokens)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_many_blocks_and_experts(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 384, (300, 8), generator=generator).to(dtype)
    require_right(ids, [True] * 384)


def test_every_token_chooses_one_expert() -> None:
    require_right(torch.full((300, 1), 3), [True] * 5)


def test_no_expert_is_here() -> None:
    routing = routed(torch.randint(0, 4, (20, 2)), [False] * 4)
    assert int(routing.tile_count) == 0
    assert routing.ends.tolist() == [0] * 4


def test_ids_out_of_range_are_nobodys() -> None:
    ids = torch.tensor([[0, -1], [7, 1], [2, 1 << 40]])
    routing = routed(ids, [True] * 3)
    assert routing.ends.tolist() == [1, 2, 3]
    assert routing.sorted_choices.tolist()[:3] == [0, 3, 4]
