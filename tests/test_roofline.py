"""coxcompile.measurement.roofline: what it computes and measures; no timings."""

from collections.abc import Iterator

import pytest
import torch

from coxcompile.measurement import roofline
from coxcompile.measurement.roofline import Roofline, measure_roofline, sample_roofline

BUFFER_BYTES = 2**20


@pytest.fixture
def _small_buffer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(roofline, "BUFFER_BYTES", BUFFER_BYTES)
    roofline._buffer.cache_clear()
    yield
    roofline._buffer.cache_clear()


@pytest.mark.parametrize(
    ("flops", "bytes_read", "seconds"), [(200, 10, 2.0), (100, 30, 3.0), (0, 10, 1.0), (0, 0, 0.0)]
)
def test_the_slower_of_the_two_rates_decides(
    flops: float, bytes_read: float, seconds: float
) -> None:
    roof = Roofline(gemm_flops_per_second=100, read_bytes_per_second=10)
    assert roof.seconds(flops, bytes_read) == seconds


@pytest.mark.usefixtures("_small_buffer")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_measures_positive_rates(dtype: torch.dtype) -> None:
    for measured in (measure_roofline(dtype), sample_roofline(dtype)):
        assert 0 < measured.gemm_flops_per_second < float("inf")
        assert 0 < measured.read_bytes_per_second < float("inf")


@pytest.mark.usefixtures("_small_buffer")
def test_the_buffer_is_written_first_and_kept() -> None:
    buffer = roofline._buffer()
    assert buffer.nbytes == BUFFER_BYTES
    assert buffer.all()
    sample_roofline()
    assert roofline._buffer() is buffer


def test_a_rate_is_the_best_of_several_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_SECONDS_PER_RATE", 1.0)
    times = iter([0.5, 0.2, 0.3, 0.4])
    assert roofline._best_of_repeats(lambda: next(times)) == 0.2
    assert next(times, None) == 0.4, "three repeats already take the second there is"
