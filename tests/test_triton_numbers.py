"""Interpreted Triton kernels compute what a GPU would, or refuse to."""

from collections.abc import Iterator

import pytest
import torch

from coxcompile.runtime.emulated.triton_driver import triton_target
from tests.triton_cases import cast, combine, multiply


@pytest.fixture(autouse=True)
def _target() -> Iterator[None]:
    with triton_target("sm_90"):
        yield


def run_cast(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.zeros(values.shape, dtype=dtype)
    cast[(1,)](values, out, N=values.numel())
    return out


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn]
)
def test_dot_is_right(dtype: torch.dtype) -> None:
    a, b = torch.randn(64, 32).to(dtype), torch.randn(32, 16).to(dtype)
    out = torch.full((64, 16), float("nan"))
    multiply[(1,)](a, b, out, M=64, N=16, K=32)
    expected = a.double() @ b.double()
    assert (out - expected).norm() < 1e-6 * expected.norm()


def test_casts_to_bfloat16_round_as_torch_does() -> None:
    ties = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0x00000001, 0x80008000]
    specials = [0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000]
    bits = torch.tensor(ties + specials, dtype=torch.int64).to(torch.int32)
    random = torch.randn(500) * 10.0 ** torch.randint(-38, 38, (500,))
    values = torch.cat([bits.view(torch.float32), random])
    expected = values.to(torch.bfloat16)
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(run_cast(values, torch.bfloat16), expected, **exactly)
    torch.testing.assert_close(run_cast(expected, torch.float32), expected.float(), **exactly)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.float16, torch.bfloat16),
        (torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.float64),
        (torch.bfloat16, torch.int32),
        (torch.bfloat16, torch.uint8),
        (torch.int32, torch.bfloat16),
        (torch.int64, torch.bfloat16),
        (torch.uint8, torch.bfloat16),
        (torch.bool, torch.bfloat16),
        (torch.float8_e4m3fn, torch.bfloat16),
        (torch.float8_e5m2, torch.float16),
        (torch.float8_e5m2, torch.float32),
    ],
)
def test_other_casts_are_right(source: torch.dtype, target: torch.dtype) -> None:
    if source.itemsize == 1 and source.is_floating_point:
        values = torch.arange(256).to(torch.uint8).view(source)
    else:
        values = (torch.rand(256) * 120).to(source)
    result = run_cast(values, target)
    torch.testing.assert_close(result, values.to(target), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.float64, torch.bfloat16),
        (torch.uint32, torch.bfloat16),
        (torch.float32, torch.float8_e4m3fn),
        (torch.bfloat16, torch.float8_e5m2),
    ],
)
def test_casts_that_would_be_wrong_are_refused(source: torch.dtype, target: torch.dtype) -> None:
    with pytest.raises(NotImplementedError, match="cast"):
        run_cast(torch.ones(16).to(source), target)


@pytest.mark.parametrize(
    "operation", ["add", "negate", "compare", "sum", "reduce", "scan", "fma", "atomic"]
)
def test_arithmetic_of_bfloat16_is_refused(operation: str) -> None:
    values, out = torch.ones(16, dtype=torch.bfloat16), torch.zeros(16, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match=r"bf16.*cast to float32"):
        combine[(1,)](values, out, OPERATION=operation, N=16)
    combine[(1,)](values.float(), out.float(), OPERATION=operation, N=16)


def test_what_moves_bfloat16_or_is_computed_in_float32_is_right() -> None:
    values, out = torch.rand(16).bfloat16(), torch.zeros(16, dtype=torch.bfloat16)
    expected = {
        "absolute": values.abs(),
        "select": torch.where(torch.arange(16) < 8, values, 1.5),
        "full": torch.full((16,), 0.3, dtype=torch.bfloat16),
        "maximum": values.clamp(min=0),
        "compare with a constant": torch.where(values < 0.5, values, 0.0),
        "cumulative sum": values.float().cumsum(0).bfloat16(),
    }
    for operation, result in expected.items():
        combine[(1,)](values, out, OPERATION=operation, N=16)
        assert torch.equal(out, result), operation
