"""The kernel of plain PyTorch calls against the same float64 reference as the C++ kernel."""

from typing import Any

import pytest
import torch
from numerics import RoutingKind, random_routing, reference_experts, relative_error

from coxcompile.runtime.kernels import plain_coalesced_experts

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 6, 2, 40, 24


def arguments(
    dtype: torch.dtype = torch.float32,
    *,
    tokens: int = 17,
    routing: RoutingKind = "ragged",
    activation: str = "silu",
    gate_layout: str = "concatenated",
    transposed: bool = False,
    biases: bool = False,
) -> dict[str, Any]:
    """The op's arguments, drawn so that outputs are of unit scale."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, deviation: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * deviation).to(dtype)

    def weight(outputs: int, inputs: int) -> torch.Tensor:
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        return normal(EXPERTS, *shape, deviation=inputs**-0.5)

    expert_ids, routing_weights = random_routing(tokens, EXPERTS, TOP_K, routing)
    return {
        "hidden_states": normal(tokens, HIDDEN),
        "expert_ids": expert_ids,
        "routing_weights": routing_weights,
        "gate_up": weight(2 * INTERMEDIATE, HIDDEN),
        "down": weight(HIDDEN, INTERMEDIATE),
        "gate_up_bias": normal(EXPERTS, 2 * INTERMEDIATE) if biases else None,
        "down_bias": normal(EXPERTS, HIDDEN) if biases else None,
        "activation": activation,
        "gate_layout": gate_layout,
        "transposed": transposed,
        # Low enough that both clamps of swigluoai are met.
        **({"alpha": 1.702, "limit": 0.8} if activation == "swigluoai" else {}),
    }


def check(given: dict[str, Any]) -> None:
    output = plain_coalesced_experts(**given)
    hidden_states = given["hidden_states"]
    assert (output.shape, output.dtype) == (hidden_states.shape, hidden_states.dtype)
    assert relative_error(output, reference_experts(**given)) <= TOLERANCE[output.dtype]


@pytest.mark.parametrize("biases", [False, True], ids=["no biases", "biases"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("gate_layout", ["concatenated", "interleaved"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "swigluoai"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_form(
    dtype: torch.dtype, activation: str, gate_layout: str, transposed: bool, biases: bool
) -> None:
    check(
        arguments(
            dtype,
            activation=activation,
            gate_layout=gate_layout,
            transposed=transposed,
            biases=biases,
        )
    )


@pytest.mark.parametrize("routing", ["uniform", "skewed", "one_expert"])
@pytest.mark.parametrize("tokens", [0, 1, 64])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_token_counts_and_routing(dtype: torch.dtype, tokens: int, routing: RoutingKind) -> None:
    check(arguments(dtype, tokens=tokens, routing=routing))


def test_int32_ids_and_bfloat16_routing_weights() -> None:
    given = arguments()
    given["expert_ids"] = given["expert_ids"].int()
    given["routing_weights"] = given["routing_weights"].bfloat16()
    check(given)


def test_swigluoai_without_limit() -> None:
    check(arguments(activation="swigluoai") | {"limit": None})


def test_one_expert_chosen_twice_by_a_token() -> None:
    given = arguments()
    given["expert_ids"][:, 1] = given["expert_ids"][:, 0]
    check(given)


@pytest.mark.parametrize("tokens", [0, 17])
@pytest.mark.parametrize("name", ["activation", "gate_layout"])
def test_unknown_name_is_an_error_that_names_it(name: str, tokens: int) -> None:
    given = arguments(tokens=tokens, routing="uniform") | {name: "nonsense"}
    with pytest.raises(ValueError, match=rf"{name} is 'nonsense', but must be"):
        plain_coalesced_experts(**given)


@pytest.mark.parametrize("expert_id", [-1, EXPERTS, 2**40])
def test_expert_id_out_of_range(expert_id: int) -> None:
    given = arguments()
    given["expert_ids"][5, 1] = expert_id
    with pytest.raises(IndexError, match=f"expert_ids.*{expert_id}"):
        plain_coalesced_experts(**given)
