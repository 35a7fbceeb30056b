"""coxmoe::coalesced_experts against a float64 reference."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import RoutingKind, random_routing, reference_experts, relative_error

import coxcompile.ops  # noqa: F401  (registers the op)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "swigluoai")
GATE_LAYOUTS = ("concatenated", "interleaved")


@dataclass(frozen=True)
class Case:
    """One call of the op; every field but those that a test is about has an unremarkable value."""

    tokens: int = 17
    experts: int = 8
    top_k: int = 2
    hidden: int = 64
    intermediate: int = 48
    dtype: torch.dtype = torch.float32
    routing_dtype: torch.dtype = torch.float32
    routing: RoutingKind = "uniform"
    activation: str = "silu"
    gate_layout: str = "concatenated"
    transposed: bool = False
    biases: bool = False

    def arguments(self) -> dict[str, Any]:
        """The op's arguments, drawn so that outputs are of unit scale."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, deviation: float = 1.0) -> torch.Tensor:
            return (torch.randn(shape, generator=generator) * deviation).to(self.dtype)

        def weight(outputs: int, inputs: int) -> torch.Tensor:
            shape = (inputs, outputs) if self.transposed else (outputs, inputs)
            return normal(self.experts, *shape, deviation=inputs**-0.5)

        expert_ids, routing_weights = random_routing(
            self.tokens, self.experts, self.top_k, self.routing
        )
        swigluoai = self.activation == "swigluoai"
        return {
            "hidden_states": normal(self.tokens, self.hidden),
            "expert_ids": expert_ids,
            "routing_weights": routing_weights.to(self.routing_dtype),
            "gate_up": weight(2 * self.intermediate, self.hidden),
            "down": weight(self.hidden, self.intermediate),
            "gate_up_bias": normal(self.experts, 2 * self.intermediate) if self.biases else None,
            "down_bias": normal(self.experts, self.hidden) if self.biases else None,
            "activation": self.activation,
            "gate_layout": self.gate_layout,
            "transposed": self.transposed,
            # A limit low enough that both clamps are met.
            "alpha": 1.702 if swigluoai else 1.0,
            "limit": 0.8 if swigluoai else None,
        }

    def check(self) -> None:
        arguments = self.arguments()
        output = coalesced_experts(**arguments)
        assert output.shape == (self.tokens, self.hidden)
        assert output.dtype == self.dtype
        assert relative_error(output, reference_experts(**arguments)) <= TOLERANCE[self.dtype]


def coalesced_experts(**arguments: Any) -> torch.Tensor:
    return torch.ops.coxmoe.coalesced_experts(**arguments)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("gate_layout", GATE_LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_form(
    dtype: torch.dtype, activation: str, gate_layout: str, transposed: bool, biases: bool
) -> None:
    Case(
        dtype=dtype,
        activation=activation,
        gate_layout=gate_layout,
        transposed=transposed,
        biases=biases,
    ).check()


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize(
    ("tokens", "routing"),
    [
        (tokens, routing)
        for tokens in (0, 1, 3, 7, 17, 64, 200)
        for routing in ("uniform", "skewed", "one_expert", "ragged")
        # A ragged routing takes two tokens.
        if tokens >= 2 or routing != "ragged"
    ],
)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_token_counts_and_routing(
    dtype: torch.dtype, tokens: int, routing: RoutingKind, transposed: bool
) -> None:
    Case(dtype=dtype, tokens=tokens, routing=routing, transposed=transposed).check()


@pytest.mark.parametrize("gate_layout", GATE_LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("tokens", [1, 7, 64, 200])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_odd_sizes(dtype: torch.dtype, tokens: int, transposed: bool, gate_layout: str) -> None:
    Case(
        dtype=dtype,
        tokens=tokens,
        hidden=70,
        intermediate=45,
        transposed=transposed,
        gate_layout=gate_layout,
        biases=True,
    ).check()


@pytest.mark.parametrize("top_k", [1, 3, 8])
@pytest.mark.parametrize("routing_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_routing_weights(routing_dtype: torch.dtype, top_k: int) -> None:
    Case(dtype=torch.bfloat16, routing_dtype=routing_dtype, top_k=top_k).check()


def test_one_expert_chosen_twice_by_a_token() -> None:
    arguments = Case().arguments()
    arguments["expert_ids"][:, 1] = arguments["expert_ids"][:, 0]
    assert relative_error(coalesced_experts(**arguments), reference_experts(**arguments)) <= 1e-5


def test_swigluoai_without_limit() -> None:
    arguments = Case(activation="swigluoai").arguments() | {"limit": None}
    assert relative_error(coalesced_experts(**arguments), reference_experts(**arguments)) <= 1e-5


def test_more_tokens_than_one_block() -> None:
    Case(tokens=700, experts=3, dtype=torch.bfloat16, routing="skewed").check()


@pytest.mark.parametrize("gate_layout", GATE_LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_many_tokens_over_a_depth_of_several_panels(
    dtype: torch.dtype, transposed: bool, gate_layout: str
) -> None:
    Case(
        tokens=600,
        experts=3,
        hidden=2150,
        intermediate=70,
        dtype=dtype,
        transposed=transposed,
        gate_layout=gate_layout,
        routing="skewed",
        biases=True,
    ).check()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_many_tokens_with_onednn_switched_off(dtype: torch.dtype) -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        Case(tokens=200, experts=3, dtype=dtype).check()


@pytest.mark.parametrize("tokens", [2, 3, 4, 6, 7, 13, 24, 25, 59])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_tokens_of_one_expert_over_a_depth_of_several_blocks(
    dtype: torch.dtype, tokens: int
) -> None:
    Case(
        tokens=tokens, experts=1, top_k=1, hidden=4330, intermediate=1070, dtype=dtype, biases=True
    ).check()


def test_wide_layer() -> None:
    Case(tokens=9, hidden=1030, intermediate=520, dtype=torch.bfloat16).check()


def test_weights_at_an_unaligned_address() -> None:
    arguments = Case(dtype=torch.bfloat16).arguments()
    expected = reference_experts(**arguments)
    for name in ("gate_up", "down"):
        weight = arguments[name]
        arguments[name] = torch.cat([weight.new_zeros(1), weight.flatten()])[1:].view_as(weight)
    assert relative_error(coalesced_experts(**arguments), expected) <= 1e-2


def test_inputs_are_not_changed() -> None:
    arguments = Case(biases=True).arguments()
    before = {
        name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)
    }
    coalesced_experts(**arguments)
    for name, value in before.items():
        assert torch.equal(arguments[name], value), name


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 9), label="experts")
    Case(
        tokens=data.draw(st.integers(0, 70), label="tokens"),
        experts=experts,
        top_k=data.draw(st.integers(1, experts), label="top_k"),
        # One output alone may be the small difference of large sums.
        hidden=data.draw(st.integers(8, 150), label="hidden"),
        intermediate=data.draw(st.integers(1, 150), label="intermediate"),
        dtype=data.draw(st.sampled_from(list(TOLERANCE)), label="dtype"),
        # Not ragged: that takes more experts than top_k.
        routing=data.draw(st.sampled_from(["uniform", "skewed", "one_expert"]), label="routing"),
        activation=data.draw(st.sampled_from(ACTIVATIONS), label="activation"),
        gate_layout=data.draw(st.sampled_from(GATE_LAYOUTS), label="gate_layout"),
        transposed=data.draw(st.booleans(), label="transposed"),
        biases=data.draw(st.booleans(), label="biases"),
    ).check()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [3, 10, 40, 100])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("hidden", "intermediate"), [(8, 0), (0, 8)])
def test_experts_without_a_size_give_the_bias(
    hidden: int, intermediate: int, transposed: bool, tokens: int, dtype: torch.dtype
) -> None:
    gate_up = torch.randn(2, 2 * intermediate, hidden).to(dtype)
    down = torch.randn(2, hidden, intermediate).to(dtype)
    if transposed:
        gate_up, down = gate_up.mT.contiguous(), down.mT.contiguous()
    bias = torch.full((2, hidden), 3, dtype=dtype)
    ids = torch.zeros(tokens, 1, dtype=torch.int64)
    hidden_states = torch.randn(tokens, hidden).to(dtype)
    output = torch.ops.coxmoe.coalesced_experts(
        hidden_states, ids, torch.ones(tokens, 1), gate_up, down, None, bias, transposed=transposed
    )
    assert output.shape == (tokens, hidden)
    assert torch.equal(output, torch.full_like(output, 3))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [3, 200])
@pytest.mark.usefixtures("restored_threads")
def test_threads_do_not_change_a_bit(tokens: int, dtype: torch.dtype) -> None:
    arguments = Case(tokens=tokens, hidden=300, routing="skewed", dtype=dtype).arguments()
    outputs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outputs.append(coalesced_experts(**arguments))
    assert torch.equal(*outputs)


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
    arguments = case.arguments()
    positional = [arguments.pop(name) for name in list(arguments)[:7]]
    torch.library.opcheck(
        torch.ops.coxmoe.coalesced_experts.default, tuple(positional), kwargs=arguments
    )


def _replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    arguments = Case(biases=True).arguments()
    return arguments | {name: change(arguments[name])}


@pytest.mark.parametrize("expert_id", [-1, 8, 2**40])
def test_expert_id_out_of_range(expert_id: int) -> None:
    arguments = Case().arguments()
    arguments["expert_ids"][5, 1] = expert_id
    with pytest.raises((RuntimeError, ValueError, IndexError), match=f"expert_ids.*{expert_id}"):
        coalesced_experts(**arguments)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hidden_states", lambda t: t[None]),
        ("hidden_states", lambda t: t.double()),
        ("expert_ids", lambda t: t[:-1]),
        ("expert_ids", lambda t: t.float()),
        ("routing_weights", lambda t: t[:, :1]),
        ("routing_weights", lambda t: t.long()),
        ("gate_up", lambda t: t[:, :-1].contiguous()),
        ("gate_up", lambda t: t[..., :-1].contiguous()),
        ("gate_up", lambda t: t.bfloat16()),
        ("gate_up", lambda t: t[0]),
        ("gate_up", lambda t: t.mT.contiguous().mT),
        ("down", lambda t: t[..., :-1].contiguous()),
        ("down", lambda t: t[:-1]),
        ("down", lambda t: t.half()),
        ("down", lambda t: t.mT.contiguous().mT),
        ("gate_up_bias", lambda t: t[:, :-1].contiguous()),
        ("gate_up_bias", lambda t: t.bfloat16()),
        ("down_bias", lambda t: t[:-1]),
        ("down_bias", lambda t: t.bfloat16()),
    ],
)
def test_wrong_tensor_is_named(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises((RuntimeError, ValueError), match=name):
        coalesced_experts(**_replaced(name, change))


@pytest.mark.parametrize(("name", "value"), [("activation", "swish"), ("gate_layout", "striped")])
def test_wrong_option_is_named(name: str, value: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=f"{name}.*{value}"):
        coalesced_experts(**Case().arguments() | {name: value})
