"""How well a calibration predicts: experts of sizes and rows that it has not measured.

Calibrates this machine, then times the experts of other models' layers and prints, for each number
of tokens an expert, the time that the fitted roofline predicts beside the measured one.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from coxcompile.calibration import calibrate
from coxcompile.hardware import Processor
from coxcompile.measurement.cpu import CpuProbe, ExpertLayer
from coxcompile.measurement.probe import Probe
from coxcompile.measurement.scheduling import scheduled_first

LAYERS = {
    "Qwen3-30B-A3B": ExpertLayer(experts=32, top_k=8, hidden=2048, intermediate=768),
    "GPT-OSS": ExpertLayer(experts=16, top_k=4, hidden=2880, intermediate=2880),
    "Mixtral-8x7B": ExpertLayer(experts=4, top_k=2, hidden=4096, intermediate=14336),
    "GLM 4.5": ExpertLayer(experts=16, top_k=8, hidden=5120, intermediate=1536),
}
"""Enough experts of each that no cache holds them; calibration measures DeepSeek-V2-Lite's."""

ROWS = (1, 3, 6, 12, 24, 48, 200)


@dataclass(frozen=True)
class Row:
    """Seconds of one call over all experts; error is predicted / measured - 1."""

    layer: str
    rows: int
    predicted: float
    measured: float
    error: float


def compare(
    processor: Processor, probes: Mapping[str, Probe], rows: Sequence[int], repeats: int
) -> list[Row]:
    """One row a layer and number of rows, the measured times medians of ``repeats``."""
    compared = []
    for name, probe in probes.items():
        for count in rows:
            probe.experts(count)
            samples = [probe.experts(count) for _ in range(repeats)]
            first = samples[0]
            predicted = processor.launch_seconds + processor.gemm_seconds(
                first.flops, first.bytes_read, float(count)
            )
            measured = statistics.median(sample.seconds for sample in samples)
            compared.append(Row(name, count, predicted, measured, predicted / measured - 1))
    return compared


def table_of(compared: Sequence[Row]) -> Table:
    """Milliseconds, and the errors' mean and largest size in the caption."""
    errors = [abs(row.error) for row in compared]
    table = Table(
        title="experts, milliseconds",
        caption=f"error: mean {statistics.mean(errors):.1%}, largest {max(errors):.1%}",
    )
    for title in ("layer", "tokens an expert", "predicted", "measured", "error"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for row in compared:
        milliseconds = (f"{seconds * 1e3:.2f}" for seconds in (row.predicted, row.measured))
        table.add_row(row.layer, str(row.rows), *milliseconds, f"{row.error:+.1%}")
    return table


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description="Check a calibration's predictions.")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    options = parser.parse_args()
    spec = calibrate(dtype=options.dtype)
    dtype = getattr(torch, options.dtype)
    probes = {name: CpuProbe(dtype, layer) for name, layer in LAYERS.items()}
    with scheduled_first():
        compared = compare(spec.cpu, probes, ROWS, options.repeats)
    Console().print(table_of(compared))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in compared], indent=2) + "\n")


if __name__ == "__main__":
    main()
