"""The expert operators as Triton kernels, interpreted, against the CPU's plain ones."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import coxcompile.ops  # noqa: F401  (defines the operators)
from coxcompile.runtime.emulated.triton_driver import triton_target
from coxcompile.runtime.kernels.gpu import configurations
from coxcompile.runtime.kernels.gpu.configurations import Row, look_up
from coxcompile.runtime.kernels.gpu.experts import coalesced_experts, experts_subset_
from coxcompile.runtime.kernels.plain import coalesced_experts as plain_coalesced_experts
from coxcompile.runtime.kernels.plain import experts_subset_ as plain_experts_subset_
from tests.gpu_cases import ExpertsCase, configuration
from tests.numerics import relative_error

BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 6e-4}


def row(device: str = "sm_90", weights: str = "bfloat16", tokens: int = 16, **shape: Any) -> Row:
    """A row whose stages say which it is."""
    chosen = configuration(stages=shape.pop("stages", 3))
    return Row(
        device=device,
        weights=weights,
        tokens_per_expert=tokens,
        configuration=chosen,
        source="made up",
        **shape,
    )


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small tiles, for the sake of the interpreter."""
    module = "coxcompile.runtime.kernels.gpu.experts"
    monkeypatch.setattr(f"{module}._configuration", lambda *_: configuration())
    with triton_target("sm_90"):
        yield


def arguments(case: ExpertsCase, tokens: int = 21, top_k: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    ids, weights = case.routing(tokens, top_k)
    return case.random(tokens, case.hidden), ids, weights


def options(case: ExpertsCase) -> dict[str, Any]:
    gating = case.gating
    return {
        "activation": gating.activation,
        "gate_layout": gating.gate_layout,
        "transposed": case.transposed,
        "alpha": gating.alpha,
        "limit": gating.limit,
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "transposed, interleaved, clamped": {
        **{"transposed": True, "gate_layout": "interleaved", "activation": "swigluoai"},
        "bias": True,
    },
    "float32": {"dtype": torch.float32, "activation": "gelu"},
    "float16": {"dtype": torch.float16, "activation": "relu"},
}


@pytest.mark.parametrize("name", CASES)
def test_coalesced_experts(name: str) -> None:
    case = ExpertsCase(**CASES[name])
    given = (*arguments(case), *case.tensors[:4])
    result = coalesced_experts(*given, **options(case))
    assert result.dtype == case.dtype
    expected = plain_coalesced_experts(*given, **options(case))
    assert relative_error(result, expected) < BOUNDS[case.dtype]


@pytest.mark.parametrize("name", CASES)
def test_shares_add_up(name: str) -> None:
    case = ExpertsCase(**CASES[name])
    given = arguments(case)
    output = torch.zeros(21, case.hidden)
    expected = torch.zeros(21, case.hidden)
    for share in ([0, 3], [4, 1, 2]):
        slots = torch.full((case.experts,), -1)
        slots[share] = torch.arange(len(share))
        tensors = [None if t is None else t[share].contiguous() for t in case.tensors[:4]]
        experts_subset_(output, *given, slots, *tensors, **options(case))
        plain_experts_subset_(expected, *given, slots, *tensors, **options(case))
    assert relative_error(output, expected) < BOUNDS[case.dtype]


def test_rows_of_tokens_without_a_choice_of_the_share_are_not_touched() -> None:
    case = ExpertsCase()
    hidden_states, ids, weights = arguments(case)
    output = torch.full((21, case.hidden), float("nan"))
    slots = torch.tensor([0, -1, -1, -1, -1])
    experts_subset_(output, hidden_states, ids, weights, slots, *case.tensors[:2])
    chose = (ids == 0).any(1)
    assert chose.any()
    assert not chose.all()
    assert output[~chose].isnan().all()


def test_the_same_inputs_give_the_same_bits() -> None:
    case = ExpertsCase()
    given = (*arguments(case, 60, 3), *case.tensors[:2])
    assert torch.equal(coalesced_experts(*given), coalesced_experts(*given))


def test_a_token_has_the_same_bits_whoever_else_is_in_the_batch() -> None:
    case = ExpertsCase()
    hidden_states, ids, weights = arguments(case, 60, 3)
    whole = coalesced_experts(hidden_states, ids, weights, *case.tensors[:2])
    part = slice(17, 40)
    alone = coalesced_experts(hidden_states[part], ids[part], weights[part], *case.tensors[:2])
    assert torch.equal(whole[part], alone)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_inputs_of_any_strides(dtype: torch.dtype) -> None:
    case = ExpertsCase()
    hidden_states, ids, weights = arguments(case)
    expected = coalesced_experts(hidden_states, ids, weights, *case.tensors[:2])
    wide = torch.randn(21, 3 * case.hidden).to(case.dtype)
    wide[:, case.hidden : 2 * case.hidden] = hidden_states
    for states in (wide[:, case.hidden : 2 * case.hidden], hidden_states.t().contiguous().t()):
        result = coalesced_experts(
            states,
            ids.t().contiguous().t().to(dtype),
            weights.t().contiguous().t(),
            *case.tensors[:2],
        )
        assert torch.equal(result, expected)


def test_no_tokens_and_no_experts() -> None:
    case = ExpertsCase()
    hidden_states, ids, weights = (part[:0] for part in arguments(case))
    assert coalesced_experts(hidden_states, ids, weights, *case.tensors[:2]).shape == (0, 40)
    output = torch.ones(21, case.hidden)
    nowhere = torch.full((case.experts,), -1)
    none = [tensor[:0] for tensor in case.tensors[:2]]
    experts_subset_(output, *arguments(case), nowhere, *none)
    assert (output == 1).all()


def test_experts_that_no_token_chose_are_not_read() -> None:
    case = ExpertsCase()
    hidden_states, ids, weights = arguments(case)
    ids = ids.clamp(max=2)
    gate_up, down = (tensor.clone() for tensor in case.tensors[:2])
    expected = coalesced_experts(hidden_states, ids, weights, gate_up, down)
    gate_up[3:] = down[3:] = float("nan")
    assert torch.equal(coalesced_experts(hidden_states, ids, weights, gate_up, down), expected)


def test_the_operator_as_pytorch_sees_it() -> None:
    """The same function, registered where it can be checked without a GPU."""
    library = torch.library.Library("coxmoe_gpu_test", "DEF")
    schema = str(torch.ops.coxmoe.experts_subset_.default._schema).partition("(")[2]
    library.define(f"experts_subset_({schema}", tags=(torch.Tag.pt2_compliant_tag,))
    library.impl("experts_subset_", experts_subset_, "CPU")
    torch.library.register_fake(
        "coxmoe_gpu_test::experts_subset_", lambda *_, **__: None, lib=library
    )
    case = ExpertsCase()
    given = (torch.zeros(21, case.hidden), *arguments(case), torch.arange(5), *case.tensors[:2])
    torch.library.opcheck(torch.ops.coxmoe_gpu_test.experts_subset_.default, given)


SHAPE = {"experts": 128, "intermediate": 768, "hidden": 2048}


def stages(rows: list[Row], tokens: float, *devices: str) -> int:
    """Of the row that is looked up for SHAPE."""
    return look_up(rows, devices or ("sm_90",), "bfloat16", tokens, **SHAPE).gate_up.stages


def test_the_row_for_the_fewest_tokens_that_are_enough_is_taken() -> None:
    rows = [row(tokens=64, stages=4), row(tokens=16, stages=2), row(tokens=32, stages=3)]
    assert [stages(rows, tokens) for tokens in (0.1, 16, 16.1, 64, 1e6)] == [2, 2, 3, 4, 4]


def test_rows_of_the_shape_go_before_others_and_a_devices_own_before_its_targets() -> None:
    rows = [
        row(stages=1),
        row(stages=2, **SHAPE),
        row(stages=3, **{**SHAPE, "experts": 64}),
        row(stages=4, device="NVIDIA H100"),
    ]
    assert stages(rows, 4) == 2
    assert stages(rows, 4, "NVIDIA H100", "sm_90") == 4
    assert stages(rows, 4, "NVIDIA H200", "sm_90") == 2


def test_a_device_without_rows_is_refused_with_the_remedy() -> None:
    with pytest.raises(LookupError, match=r"bfloat16 experts on sm_75, only for sm_90.*tune"):
        stages([row()], 4, "sm_75")


def test_a_table_is_the_same_after_it_was_saved(tmp_path: Any) -> None:
    rows = (row(), row(device="NVIDIA H100", **SHAPE))
    path = tmp_path / "folder" / "table.json"
    configurations.save_rows(path, rows)
    assert configurations.load_rows(path) == rows
