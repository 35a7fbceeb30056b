"""coxmoe::coalesced_experts.separate against the stacked op, to the bit, and its errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from numerics import RoutingKind, reference_experts, relative_error
from test_ops import ACTIVATIONS, TOLERANCE, Case, coalesced_experts

from coxcompile.ops import CPU_KERNELS
from coxcompile.runtime.kernels import inductor_obstacle, plain_coalesced_separate_experts

Arguments = dict[str, Any]

LISTS = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
NATIVE = pytest.mark.skipif(
    CPU_KERNELS != "native", reason="the C++ kernels, which check weights, are not built"
)


def coalesced_separate_experts(**arguments: Any) -> torch.Tensor:
    return torch.ops.coxmoe.coalesced_experts.separate(**arguments)


def separated(stacked: Arguments, *, copied: bool = True) -> Arguments:
    """The same call with tensors of each expert's own; else with slices of the stacked weights."""

    def list_of(stack: torch.Tensor | None) -> list[torch.Tensor] | None:
        if stack is None:
            return None
        return [part.clone() if copied else part for part in stack.unbind()]

    def halves(stack: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if stack is None:
            return None, None
        intermediate = stack.shape[1] // 2
        return stack[:, :intermediate], stack[:, intermediate:]

    names = ("hidden_states", "expert_ids", "routing_weights", "activation", "alpha", "limit")
    gate, up = halves(stacked["gate_up"])
    gate_bias, up_bias = halves(stacked["gate_up_bias"])
    stacks = (gate, up, stacked["down"], gate_bias, up_bias, stacked["down_bias"])
    lists = {name: list_of(stack) for name, stack in zip(LISTS, stacks, strict=True)}
    return {name: stacked[name] for name in names} | lists


def check_same_bits(case: Case, *, copied: bool = True) -> None:
    stacked = case.arguments()
    output = coalesced_separate_experts(**separated(stacked, copied=copied))
    assert output.dtype == case.dtype
    assert torch.equal(output, coalesced_experts(**stacked))


@NATIVE
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_form_has_the_bits_of_the_stacked_op(
    dtype: torch.dtype, activation: str, biases: bool
) -> None:
    check_same_bits(Case(dtype=dtype, activation=activation, biases=biases))


@NATIVE
@pytest.mark.parametrize(
    ("tokens", "routing", "top_k"),
    [
        (0, "uniform", 2),
        (1, "uniform", 2),
        (1, "uniform", 1),
        (17, "one_expert", 1),
        (200, "ragged", 1),
        (200, "ragged", 3),
        (600, "skewed", 8),
    ],
)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_routing_has_the_bits_of_the_stacked_op(
    dtype: torch.dtype, tokens: int, routing: RoutingKind, top_k: int
) -> None:
    sizes = {"hidden": 70, "intermediate": 45}
    check_same_bits(
        Case(dtype=dtype, tokens=tokens, routing=routing, top_k=top_k, biases=True, **sizes)
    )


@NATIVE
@pytest.mark.parametrize("tokens", [3, 200])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_slices_of_a_stack_have_its_bits(dtype: torch.dtype, tokens: int) -> None:
    case = Case(dtype=dtype, tokens=tokens, hidden=70, intermediate=45, biases=True)
    check_same_bits(case, copied=False)


@pytest.mark.parametrize("kernel", [coalesced_separate_experts, plain_coalesced_separate_experts])
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_float64_reference(
    kernel: Callable[..., torch.Tensor], dtype: torch.dtype, activation: str, biases: bool
) -> None:
    stacked = Case(dtype=dtype, activation=activation, biases=biases, routing="ragged").arguments()
    output = kernel(**separated(stacked))
    assert output.dtype == dtype
    assert relative_error(output, reference_experts(**stacked)) <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    "case",
    [Case(), Case(tokens=0), Case(dtype=torch.bfloat16, activation="swigluoai", biases=True)],
    ids=["float32", "no tokens", "gpt-oss"],
)
def test_opcheck(case: Case) -> None:
    arguments = separated(case.arguments())
    positional = [
        arguments.pop(name) for name in ("hidden_states", "expert_ids", "routing_weights", *LISTS)
    ]
    torch.library.opcheck(
        torch.ops.coxmoe.coalesced_experts.separate, tuple(positional), kwargs=arguments
    )


@pytest.mark.skipif(inductor_obstacle() is not None, reason="Inductor cannot compile for the CPU")
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
def test_a_compiled_graph_calls_it_for_any_number_of_tokens(biases: bool) -> None:
    def negated(hidden_states: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        return -coalesced_separate_experts(**arguments | {"hidden_states": -hidden_states})

    compiled = torch.compile(negated, fullgraph=True, dynamic=True)
    for tokens in (5, 40):
        arguments = separated(Case(tokens=tokens, biases=biases).arguments())
        hidden_states = arguments.pop("hidden_states")
        expected = negated(hidden_states, arguments)
        assert torch.equal(compiled(hidden_states, arguments), expected)


def unchecked_ids(case: Case) -> Arguments:
    """Arguments whose ids are no experts: an error of another argument comes before any routing."""
    arguments = separated(case.arguments())
    return arguments | {"expert_ids": torch.full_like(arguments["expert_ids"], -1)}


@pytest.mark.parametrize("name", LISTS[1:])
@pytest.mark.parametrize("length", [0, 7, 9])
@pytest.mark.parametrize("kernel", [coalesced_separate_experts, plain_coalesced_separate_experts])
def test_wrong_length_is_named(kernel: Callable[..., torch.Tensor], length: int, name: str) -> None:
    arguments = separated(Case(biases=True).arguments())
    wrong = (arguments[name] * 2)[:length]
    with pytest.raises(ValueError, match=rf": {name} holds {length} tensors, .* 8 experts"):
        kernel(**arguments | {name: wrong})


@NATIVE
@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t[:-1].clone(), "shape"),
        (lambda t: t[None], "shape"),
        (lambda t: t.bfloat16(), "BFloat16"),
        (lambda t: torch.stack([t, t], dim=-1)[..., 0], "contiguous"),
    ],
    ids=["size", "dimensions", "dtype", "strides"],
)
def test_wrong_tensor_is_named(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], problem: str
) -> None:
    arguments = unchecked_ids(Case(biases=True))
    arguments[name][3] = change(arguments[name][3])
    with pytest.raises(ValueError, match=rf": {name}\[3\] .*{problem}"):
        coalesced_separate_experts(**arguments)


@pytest.mark.parametrize("kernel", [coalesced_separate_experts, plain_coalesced_separate_experts])
def test_no_experts_at_all_is_an_error(kernel: Callable[..., torch.Tensor]) -> None:
    arguments = unchecked_ids(Case()) | {"gate": [], "up": [], "down": []}
    with pytest.raises(ValueError, match="gate holds no tensors"):
        kernel(**arguments)


@pytest.mark.parametrize("expert_id", [-1, 8, 2**40])
@pytest.mark.parametrize("kernel", [coalesced_separate_experts, plain_coalesced_separate_experts])
def test_expert_id_out_of_range(kernel: Callable[..., torch.Tensor], expert_id: int) -> None:
    arguments = separated(Case().arguments())
    arguments["expert_ids"][5, 1] = expert_id
    with pytest.raises(IndexError, match=f"expert_ids.*{expert_id}"):
        kernel(**arguments)


@pytest.mark.parametrize("kernel", [coalesced_separate_experts, plain_coalesced_separate_experts])
def test_unknown_activation_is_named(kernel: Callable[..., torch.Tensor]) -> None:
    arguments = separated(Case().arguments()) | {"activation": "swish"}
    with pytest.raises(ValueError, match=r"activation.*swish"):
        kernel(**arguments)
