"""``coxmoe calibrate``: measure this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coxcompile.commands.doctor import loops
from coxcompile.detection import calibration_file
from coxcompile.hardware import Dtype, HardwareSpec, Link, Processor
from coxcompile.planner.records import RecordError, save

if TYPE_CHECKING:
    from rich.table import Table


def calibrate(
    output: Annotated[
        Path | None,
        typer.Option(help="The .json or .toml file to write, if not the one that is read later."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of a minute.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="Of the models to plan for.")] = "bfloat16",
) -> None:
    """Measure this machine, with nothing else running; plans for "this" system use it."""
    path = output or calibration_file(dtype)
    if path.suffix not in (".json", ".toml"):
        raise RecordError(f"{path}: the suffix must be .json or .toml")
    if output is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.parent.is_dir():
        raise RecordError(f"{path}: there is no folder {str(path.parent)!r}; make it first")
    from rich.console import Console

    from coxcompile import calibration

    spec = calibration.calibrate(quick=quick, dtype=dtype)
    save(spec, path)
    console = Console()
    console.print(_table(spec))
    console.print(f"written to {path}", soft_wrap=True)


def _table(spec: HardwareSpec) -> "Table":
    from rich.table import Table

    table = Table(title=f"{spec.name}, {spec.dtype}, {spec.source}")
    table.add_column("")
    processors = [spec.cpu] if spec.gpu is None else [spec.cpu, spec.gpu]
    for processor in processors:
        table.add_column(processor.name, justify="right")
    columns = [_figures(processor) for processor in processors]
    for title in columns[0]:
        table.add_row(title, *(figures.get(title, "-") for figures in columns))
    for title, link in (("to the GPU", spec.host_to_device), ("from it", spec.device_to_host)):
        if link is not None:
            table.add_row(title, "-", _link(link))
    if spec.expert_thresholds is not None:
        table.add_row("loops of its experts", loops(spec.expert_thresholds))
    return table


def _figures(processor: Processor) -> dict[str, str]:
    curve = processor.gemm_efficiency
    return {
        "products": f"{processor.flops_per_second / 1e12:.3g} TFLOP/s",
        "memory": f"{processor.memory_bytes / 2**30:.0f} GiB",
        "reading it": f"{processor.memory_bytes_per_second / 1e9:.1f} GB/s",
        "experts at 1 row, of that": f"{processor.memory_efficiency:.0%}",
        **{
            f"experts at {rows:.0f} rows, of products": f"{share:.0%}"
            for rows, share in zip(curve.rows, curve.shares, strict=True)
        },
        "attention, of products": f"{processor.attention_efficiency:.0%}",
        "a head of attention, decoding": f"{processor.attention_head_seconds * 1e6:.1f} µs",
        "starting an operation": f"{processor.launch_seconds * 1e6:.1f} µs",
    }


def _link(link: Link) -> str:
    return f"{link.bytes_per_second / 1e9:.1f} GB/s, {link.latency_seconds * 1e6:.1f} µs"
