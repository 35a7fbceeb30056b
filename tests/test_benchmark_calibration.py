"""benchmarks/calibration.py: what it compares; nothing is timed."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import calibration

from coxcompile.hardware import Processor
from coxcompile.measurement.probe import Sample
from coxcompile.measurement.roofline import Roofline

CPU = Processor(
    name="a CPU",
    flops_per_second=10.0,
    memory_bytes=1000,
    memory_bytes_per_second=100.0,
    launch_seconds=1.0,
)


class Slow:
    """Takes 4, 6 and 5 seconds in turn, after a first call that takes far longer."""

    def __init__(self) -> None:
        self.seconds = iter((100.0, 4.0, 6.0, 5.0))

    def experts(self, rows: int) -> Sample:
        return Sample(10.0 * rows, 1.0, next(self.seconds), Roofline(1.0, 1.0))


def test_predicted_beside_the_median_of_what_is_measured() -> None:
    (row,) = calibration.compare(CPU, {"tiny": Slow()}, (3,), repeats=3)
    assert (row.layer, row.rows, row.predicted, row.measured) == ("tiny", 3, 4.0, 5.0)
    assert row.error == pytest.approx(-0.2)
    assert str(calibration.table_of([row]).caption) == "error: mean 20.0%, largest 20.0%"


def test_the_layers_are_none_that_calibration_measures() -> None:
    assert calibration.CpuProbe(calibration.torch.bfloat16).layer not in calibration.LAYERS.values()
    for layer in calibration.LAYERS.values():
        for rows in calibration.ROWS:
            assert layer.experts * rows % layer.top_k == 0
            assert 6 * layer.experts * layer.hidden * layer.intermediate > 2**28, "bytes, bfloat16"
