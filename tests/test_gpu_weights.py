"""Tables of addresses: from stacks, from single tensors, and what is refused."""

from typing import Any

import pytest
import torch

from coxcompile.runtime.emulated.triton_driver import triton_target
from coxcompile.runtime.kernels.gpu.device import current_device
from coxcompile.runtime.kernels.gpu.experts import run_experts_
from coxcompile.runtime.kernels.gpu.weights import ExpertWeights
from tests.gpu_cases import ExpertsCase, configuration
from tests.triton_checks import checked


def from_stacked(*tensors: Any, **options: Any) -> ExpertWeights:
    with triton_target("sm_90"), checked():
        return ExpertWeights.from_stacked(*tensors, **options)


def separate(case: ExpertsCase, here: set[int]) -> list[list[Any] | None]:
    """Each expert's tensors, in memory of their own."""
    return [
        [None if t is None else t[expert].clone() for t in case.tensors] if expert in here else None
        for expert in range(case.experts)
    ]


def test_addresses_of_stacked_weights() -> None:
    case = ExpertsCase(bias=True)
    slots = torch.tensor([2, -1, 0, 4, -1, 1])
    weights = from_stacked(*case.tensors, expert_slots=slots)
    assert weights.experts == 6
    for row, tensor in zip(weights.addresses, case.tensors, strict=True):
        expected = [
            0 if slot < 0 or tensor is None else tensor[slot].data_ptr() for slot in slots.tolist()
        ]
        assert row.tolist() == expected


def test_stacks_without_slots_hold_every_expert() -> None:
    case = ExpertsCase()
    weights = from_stacked(*case.tensors)
    assert weights.addresses[1].tolist() == [matrix.data_ptr() for matrix in case.tensors[1]]


@pytest.mark.parametrize("format", ["dense", "int4"])
def test_separate_tensors_give_the_same_bits_as_a_stack(format: Any) -> None:
    case = ExpertsCase(format=format, bias=True)
    ids, routing_weights = case.routing(21, 2)
    hidden_states = case.random(21, case.hidden)
    outputs = []
    slots = torch.tensor([0, 1, -1, 3, 4])
    with triton_target("sm_90"):
        tables = (
            case.weights(slots),
            ExpertWeights.from_tensors(separate(case, {0, 1, 3, 4}), format=format),
        )
        for weights in tables:
            outputs.append(torch.zeros(21, case.hidden))
            with checked(extra_tensors=weights.owners):
                run_experts_(
                    outputs[-1],
                    hidden_states,
                    ids,
                    routing_weights,
                    weights,
                    case.gating,
                    configuration(),
                    current_device(),
                    add=True,
                )
    assert outputs[0].any()
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("hidden", "alignment"), [(64, 16), (44, 8), (42, 4), (33, 2)])
def test_alignment_is_that_of_every_row(hidden: int, alignment: int) -> None:
    case = ExpertsCase(hidden=hidden, intermediate=16)
    assert from_stacked(*case.tensors).gate_up.alignment == alignment


def test_alignment_is_that_of_the_least_aligned_expert() -> None:
    case = ExpertsCase(hidden=64)
    experts = separate(case, {0, 1})
    shifted = torch.empty(experts[1][0].numel() + 4, dtype=case.dtype)[4:]
    experts[1][0] = shifted.view(experts[1][0].shape).copy_(experts[1][0])
    assert ExpertWeights.from_tensors(experts[:1]).gate_up.alignment == 16
    assert ExpertWeights.from_tensors(experts).gate_up.alignment == 8


REFUSALS: dict[str, tuple[dict[int, Any], dict[str, Any], str]] = {
    "dtype of a format": ({}, {"format": "int8"}, "gate_up is torch.bfloat16, but format 'int8'"),
    "strides": ({0: lambda t: t.mT}, {}, "gate_up has shape .* must be contiguous"),
    "slots": ({1: lambda t: t[:3]}, {}, r"down has shape \(3, .*have 5 slots"),
    "sizes": ({1: lambda t: t[..., :-1].contiguous()}, {}, "they must be H to 2 I and I to H"),
    "bias": (
        {3: lambda t: t[:, :-1].contiguous()},
        {},
        r"down_bias has \(39,\) an expert.*\(40,\)",
    ),
    "scales of dense weights": ({4: lambda t: torch.ones(5, 48, 1)}, {}, "'dense' has none"),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_contradictions_are_refused(reason: str) -> None:
    changes, options, message = REFUSALS[reason]
    tensors: list[Any] = list(ExpertsCase(bias=True).tensors)
    for position, change in changes.items():
        tensors[position] = change(tensors[position])
    with pytest.raises(ValueError, match=message):
        from_stacked(*tensors, **options)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (None, "gate_up_scales is None, but format 'int8' needs scales"),
        (torch.ones(5, 48, 7), r"gate_up_scales has \(48, 7\) an expert.*divide the 40 inputs"),
    ],
)
def test_scales_of_quantised_weights(scales: Any, message: str) -> None:
    gate_up, down, _, _, _, down_scales = ExpertsCase(format="int8").tensors
    with pytest.raises(ValueError, match=message):
        from_stacked(gate_up, down, None, None, scales, down_scales, format="int8")


def test_quantised_weights_are_not_transposed() -> None:
    with pytest.raises(ValueError, match="transposed is True with format 'int8'"):
        from_stacked(*ExpertsCase(format="int8").tensors, format="int8", transposed=True)


def test_experts_that_differ_are_refused() -> None:
    experts = separate(ExpertsCase(), {0, 1})
    experts[1][1] = experts[1][1].float()
    with pytest.raises(ValueError, match=r"down is torch.float32 .* torch.bfloat16"):
        ExpertWeights.from_tensors(experts)
    with pytest.raises(ValueError, match="no expert that is here"):
        ExpertWeights.from_tensors([None, None])
