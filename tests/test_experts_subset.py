"""coxmoe::experts_subset_ (C++, plain and grouped kernels) against a float64 reference."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numerics import RoutingKind, reference_experts, relative_error
from test_ops import ACTIVATIONS, GATE_LAYOUTS, TOLERANCE, Case, coalesced_experts
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from coxcompile.runtime.kernels import (
    grouped,
    grouped_experts_subset_,
    plain_experts_subset_,
    tiles,
)
from coxcompile.runtime.kernels.gating import Gating
from coxcompile.runtime.kernels.stacked import StackedExperts

Arguments = dict[str, Any]
Kernel = Callable[..., None]

KERNELS: dict[str, Kernel] = {
    "registered": torch.ops.coxmoe.experts_subset_,
    "plain": plain_experts_subset_,
    "grouped": grouped_experts_subset_,
}
STACKED = ("gate_up", "down", "gate_up_bias", "down_bias")
HALF = (6, 1, 3, 4)


@pytest.fixture(params=list(KERNELS))
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return KERNELS[request.param]


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def share_of(arguments: Arguments, experts: Sequence[int]) -> Arguments:
    """The arguments for a share, its weights stacked in the order the experts are given in."""
    expert_slots = torch.full((len(arguments["gate_up"]),), -1)
    expert_slots[list(experts)] = torch.arange(len(experts))
    stacked = {
        name: None if arguments[name] is None else arguments[name][list(experts)]
        for name in STACKED
    }
    return {**arguments, "expert_slots": expert_slots, **stacked}


def reference_share(arguments: Arguments, experts: Sequence[int]) -> torch.Tensor:
    """What a share contributes: the whole with the other experts' routing weights 0, in float64."""
    others = ~torch.isin(arguments["expert_ids"], torch.tensor(experts, dtype=torch.int64))
    weights = arguments["routing_weights"].masked_fill(others, 0)
    return reference_experts(**arguments | {"routing_weights": weights})


def contribution(kernel: Kernel, share: Arguments) -> torch.Tensor:
    """What the kernel adds to zeros."""
    output = torch.zeros(share["hidden_states"].shape)
    assert kernel(output=output, **share) is None
    return output


def check_share(kernel: Kernel, case: Case, experts: Sequence[int]) -> None:
    """Compare a share added to an output that is not zero."""
    arguments = case.arguments()
    before = torch.randn(case.tokens, case.hidden, generator=torch.Generator().manual_seed(1))
    output = before.clone()
    kernel(output=output, **share_of(arguments, experts))
    expected = before + reference_share(arguments, experts)
    assert relative_error(output, expected) <= TOLERANCE[case.dtype]


@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("gate_layout", GATE_LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_form(
    kernel: Kernel,
    dtype: torch.dtype,
    activation: str,
    gate_layout: str,
    transposed: bool,
    biases: bool,
) -> None:
    case = Case(
        dtype=dtype,
        activation=activation,
        gate_layout=gate_layout,
        transposed=transposed,
        biases=biases,
    )
    check_share(kernel, case, HALF)


@pytest.mark.parametrize("routing", ["uniform", "skewed", "one_expert", "ragged"])
@pytest.mark.parametrize("tokens", [2, 3, 64, 200])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_token_counts_and_routing(
    kernel: Kernel, dtype: torch.dtype, tokens: int, routing: RoutingKind
) -> None:
    check_share(kernel, Case(dtype=dtype, tokens=tokens, routing=routing), HALF)


@pytest.mark.parametrize("tokens", [1, 200])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_odd_sizes(kernel: Kernel, dtype: torch.dtype, tokens: int) -> None:
    case = Case(dtype=dtype, tokens=tokens, hidden=70, intermediate=45, biases=True)
    check_share(kernel, case, HALF)


def test_int32_ids_and_bfloat16_routing_weights(kernel: Kernel) -> None:
    arguments = Case(routing_dtype=torch.bfloat16).arguments()
    arguments["expert_ids"] = arguments["expert_ids"].int()
    output = contribution(kernel, share_of(arguments, HALF))
    assert relative_error(output, reference_share(arguments, HALF)) <= 1e-5


def test_tokens_that_are_not_contiguous(kernel: Kernel) -> None:
    arguments = Case().arguments()
    expected = reference_share(arguments, HALF)
    for name in ("hidden_states", "expert_ids", "routing_weights"):
        arguments[name] = arguments[name].t().contiguous().t()
    assert relative_error(contribution(kernel, share_of(arguments, HALF)), expected) <= 1e-5


def test_one_expert_chosen_twice_by_a_token(kernel: Kernel) -> None:
    arguments = Case().arguments()
    arguments["expert_ids"][:, 1] = arguments["expert_ids"][:, 0]
    output = contribution(kernel, share_of(arguments, HALF))
    assert relative_error(output, reference_share(arguments, HALF)) <= 1e-5


def test_any_negative_slot_is_elsewhere(kernel: Kernel) -> None:
    arguments = Case().arguments()
    share = share_of(arguments, HALF)
    share["expert_slots"][share["expert_slots"] < 0] = torch.tensor([-7, -1, -(2**40), -2])
    output = contribution(kernel, share)
    assert relative_error(output, reference_share(arguments, HALF)) <= 1e-5


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_shares_add_up_to_the_whole(name: str, data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 9), label="experts")
    case = Case(
        tokens=data.draw(st.integers(0, 40), label="tokens"),
        experts=experts,
        top_k=data.draw(st.integers(1, experts), label="top_k"),
        # A few outputs alone may be small differences of large sums.
        hidden=data.draw(st.integers(8, 80), label="hidden"),
        intermediate=data.draw(st.integers(1, 80), label="intermediate"),
        dtype=data.draw(st.sampled_from(list(TOLERANCE)), label="dtype"),
        routing=data.draw(st.sampled_from(["uniform", "skewed", "one_expert"]), label="routing"),
        activation=data.draw(st.sampled_from(ACTIVATIONS), label="activation"),
        gate_layout=data.draw(st.sampled_from(GATE_LAYOUTS), label="gate_layout"),
        transposed=data.draw(st.booleans(), label="transposed"),
        biases=data.draw(st.booleans(), label="biases"),
    )
    shares = data.draw(st.integers(1, 4), label="shares")
    of_expert = data.draw(st.lists(st.integers(0, shares - 1), min_size=experts, max_size=experts))
    order = data.draw(st.permutations(range(experts)), label="order")
    arguments = case.arguments()
    output = torch.zeros(case.tokens, case.hidden)
    for share in range(shares):
        own = [expert for expert in order if of_expert[expert] == share]
        KERNELS[name](output=output, **share_of(arguments, own))
    tolerance = TOLERANCE[case.dtype]
    assert relative_error(output, reference_experts(**arguments)) <= tolerance
    assert relative_error(output, coalesced_experts(**arguments)) <= 2 * tolerance


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [3, 200])
def test_a_share_of_all_experts_is_the_whole(tokens: int, dtype: torch.dtype) -> None:
    case = Case(tokens=tokens, dtype=dtype, routing="ragged", biases=True)
    arguments = case.arguments()
    output = contribution(KERNELS["registered"], share_of(arguments, range(case.experts)))
    assert torch.equal(output.to(dtype), coalesced_experts(**arguments))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_rows_of_other_tokens_keep_their_bits(kernel: Kernel, dtype: torch.dtype) -> None:
    arguments = Case(dtype=dtype, tokens=40).arguments()
    elsewhere = ~torch.isin(arguments["expert_ids"], torch.tensor(HALF)).any(dim=1)
    assert 3 < elsewhere.sum() < 37
    arguments["hidden_states"][elsewhere] = torch.nan
    before = torch.zeros(40, 64)
    before[elsewhere] = -0.0
    before[elsewhere.nonzero()[0]] = torch.nan
    output = before.clone()
    kernel(output=output, **share_of(arguments, HALF))
    assert torch.equal(output.view(torch.int32)[elsewhere], before.view(torch.int32)[elsewhere])
    assert output[~elsewhere].isfinite().all()
    assert (output[~elsewhere] != 0).any(dim=1).all()


@pytest.mark.parametrize("experts", [(), HALF], ids=["empty share", "half"])
def test_no_tokens(kernel: Kernel, experts: tuple[int, ...]) -> None:
    share = share_of(Case(tokens=0, biases=True).arguments(), experts)
    assert contribution(kernel, share).shape == (0, 64)


def test_an_empty_share_adds_nothing(kernel: Kernel) -> None:
    share = share_of(Case(biases=True).arguments(), ())
    assert share["gate_up"].shape == (0, 96, 64)
    output = torch.full((17, 64), -0.0)
    kernel(output=output, **share)
    assert torch.equal(output.view(torch.int32), torch.full((17, 64), -0.0).view(torch.int32))


def test_a_share_nobody_chose_adds_nothing(kernel: Kernel) -> None:
    arguments = Case(biases=True).arguments()
    arguments["expert_ids"] %= 3
    share = share_of(arguments, (5, 3))
    assert torch.equal(contribution(kernel, share), torch.zeros(17, 64))


def test_inputs_are_not_changed(kernel: Kernel) -> None:
    share = share_of(Case(biases=True).arguments(), HALF)
    before = {
        name: value.clone() for name, value in share.items() if isinstance(value, torch.Tensor)
    }
    contribution(kernel, share)
    for name, value in before.items():
        assert torch.equal(share[name], value), name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [3, 200])
@pytest.mark.usefixtures("restored_threads")
def test_threads_do_not_change_a_bit(tokens: int, dtype: torch.dtype) -> None:
    case = Case(tokens=tokens, hidden=300, routing="skewed", dtype=dtype)
    share = share_of(case.arguments(), HALF)
    outputs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outputs.append(contribution(KERNELS["registered"], share))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_what_memory_held_before_does_not_matter_to_grouped_products(dtype: torch.dtype) -> None:
    arguments = Case(dtype=dtype, routing="ragged", biases=True).arguments()
    try:
        # Fills what torch.empty returns with NaN.
        torch.use_deterministic_algorithms(True)
        output = contribution(grouped_experts_subset_, share_of(arguments, HALF))
    finally:
        torch.use_deterministic_algorithms(False)
    assert relative_error(output, reference_share(arguments, HALF)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [1, 3, 60])
def test_tiles_in_many_pieces(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(tiles, "_WEIGHT_BYTES", 1)
    check_share(grouped_experts_subset_, Case(tokens=tokens, routing="skewed"), HALF)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_grouped_products_wait_for_no_value(dtype: torch.dtype) -> None:
    share = share_of(Case(dtype=dtype, biases=True).arguments(), HALF)
    with FakeTensorMode() as mode:
        faked = {
            name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for name, value in share.items()
        }
        contribution(grouped_experts_subset_, faked)
        # Fake tensors have no values: asking for one is an error, as the plain kernel shows.
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            contribution(plain_experts_subset_, faked)


@pytest.mark.parametrize(
    ("capability", "dtype", "hidden", "by_tiles"),
    [
        ((9, 0), torch.bfloat16, 64, False),
        ((10, 0), torch.bfloat16, 64, False),
        # Where torch's grouped_mm copies the groups' sizes to the host, or refuses.
        ((8, 0), torch.bfloat16, 64, True),
        ((9, 0), torch.float16, 64, True),
        ((9, 0), torch.float32, 64, True),
        ((9, 0), torch.bfloat16, 60, True),
    ],
)
def test_gpus_whose_grouped_mm_would_wait_run_by_tiles(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    hidden: int,
    by_tiles: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():
        experts = StackedExperts(
            torch.empty(4, 96, hidden, dtype=dtype, device="cuda"),
            torch.empty(4, hidden, 48, dtype=dtype, device="cuda"),
            None,
            None,
            transposed=False,
            gating=Gating("experts_subset_", "silu", "concatenated", 1.0, None),
        )
        assert grouped.grouped_mm_takes(experts) is not by_tiles


def test_gpus_run_the_grouped_kernel() -> None:
    name = "coxmoe::experts_subset_"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(dtype=torch.bfloat16, tokens=0),
        Case(
            dtype=torch.bfloat16,
            activation="swigluoai",
            gate_layout="interleaved",
            transposed=True,
            biases=True,
        ),
    ],
    ids=["float32", "no tokens", "gpt-oss"],
)
def test_opcheck(case: Case) -> None:
    share = share_of(case.arguments(), HALF)
    tensors = ("hidden_states", "expert_ids", "routing_weights", "expert_slots", *STACKED)
    positional = [share.pop(name) for name in tensors]
    output = torch.ones(case.tokens, case.hidden)
    torch.library.opcheck(
        torch.ops.coxmoe.experts_subset_.default, (output, *positional), kwargs=share
    )


@pytest.mark.parametrize("name", ["registered", "plain"])
@pytest.mark.parametrize("expert_id", [-1, 8, 2**40])
def test_expert_id_out_of_range(name: str, expert_id: int) -> None:
    share = share_of(Case().arguments(), HALF)
    share["expert_ids"][5, 1] = expert_id
    output = torch.zeros(17, 64)
    with pytest.raises(IndexError, match=f"experts_subset_: expert_ids holds {expert_id}"):
        KERNELS[name](output=output, **share)
    assert not output.any()


@pytest.mark.parametrize("name", ["registered", "plain"])
@pytest.mark.parametrize("slot", [4, 2**40])
def test_slot_out_of_range(name: str, slot: int) -> None:
    share = share_of(Case().arguments(), HALF)
    share["expert_slots"][0] = slot
    output = torch.zeros(17, 64)
    with pytest.raises(ValueError, match=f"experts_subset_: expert_slots holds slot {slot}"):
        KERNELS[name](output=output, **share)
    assert not output.any()


@pytest.mark.parametrize(
    "output",
    [torch.zeros(17, 64).bfloat16(), torch.zeros(16, 64), torch.zeros(64, 17).t()],
    ids=["dtype", "shape", "strides"],
)
def test_wrong_output_is_named(kernel: Kernel, output: torch.Tensor) -> None:
    share = share_of(Case().arguments(), HALF)
    with pytest.raises(ValueError, match="experts_subset_: output"):
        kernel(output=output, **share)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("expert_slots", lambda t: t.int()),
        ("expert_slots", lambda t: t[None]),
        ("expert_slots", lambda t: t.repeat_interleave(2)[::2]),
        ("hidden_states", lambda t: t.double()),
        ("expert_ids", lambda t: t[:-1]),
        ("routing_weights", lambda t: t[:, :1]),
        ("gate_up", lambda t: t.bfloat16()),
        ("gate_up", lambda t: t.mT.contiguous().mT),
        ("down", lambda t: t[:-1]),
        ("gate_up_bias", lambda t: t[:, :-1].contiguous()),
        ("down_bias", lambda t: t.bfloat16()),
    ],
)
def test_wrong_tensor_is_named(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    share = share_of(Case(biases=True).arguments(), HALF)
    with pytest.raises(ValueError, match=f"experts_subset_: {name}"):
        contribution(KERNELS["registered"], share | {name: change(share[name])})


@pytest.mark.parametrize(("name", "value"), [("activation", "swish"), ("gate_layout", "striped")])
def test_wrong_option_is_named(kernel: Kernel, name: str, value: str) -> None:
    share = share_of(Case().arguments(), HALF)
    with pytest.raises(ValueError, match=f"experts_subset_: {name} is '{value}'"):
        contribution(kernel, share | {name: value})
