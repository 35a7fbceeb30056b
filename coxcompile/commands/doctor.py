"""``coxmoe doctor``: what is installed, which kernels run here, and what slows them."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import msgspec

from coxcompile.commands.options import AsJson

if TYPE_CHECKING:
    from coxcompile.diagnosis import Diagnosis
    from coxcompile.hardware import ExpertThresholds


def doctor(json: AsJson = False) -> None:
    """Show what is installed and which kernels run on this machine, with hints on what is slow."""
    from coxcompile.diagnosis import diagnose
    from coxcompile.hints import hints

    diagnosis = diagnose()
    found = hints(diagnosis)
    if json:
        encoded = msgspec.json.encode({**asdict(diagnosis), "hints": found})
        print(msgspec.json.format(encoded, indent=2).decode())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, value in rows(diagnosis):
        table.add_row(title, value)
    console = Console()
    console.print(table)
    for hint in found:
        console.print(f"- {hint}", highlight=False)
    if not found:
        console.print("Nothing here is slow to leave as it is.")


def rows(found: "Diagnosis") -> Iterator[tuple[str, str]]:
    """The table's rows."""
    processor, kernels = found.processor, found.kernels
    yield "Python", found.python
    yield "PyTorch", found.torch
    yield "Triton", found.triton or "not installed"
    yield "C++ compiler", found.compiler or f"none: {found.compiler_obstacle}"
    yield "CPU", found.machine.cpu
    yield "its instruction sets", ", ".join(processor.instruction_sets) or "none of interest"
    yield "AMX", _amx(found)
    yield "expert kernels", kernels.provider
    for dtype, instruction_set in kernels.instruction_sets.items():
        tokens = kernels.panel_tokens[dtype]
        panels = f"; transposed weights, from {tokens} tokens on: oneDNN" if tokens else ""
        yield f"in {dtype}", f"{instruction_set}{panels}"
    if kernels.thresholds is not None:
        yield "its loops in bfloat16", loops(kernels.thresholds)
        yield "their thresholds", kernels.thresholds_source
    yield "PyTorch's kernels", found.capability
    if found.onednn is None:
        yield "oneDNN", f"unknown: {found.onednn_error}"
    else:
        yield "oneDNN", found.onednn.instruction_set
        yield "its linear in bfloat16", found.onednn.implementation or "not used by PyTorch"
    yield "threads", _threads(found)
    yield "NUMA nodes", str(processor.numa_nodes)
    yield "large pages", processor.large_pages
    yield "GPU", found.machine.gpu or "none"
    yield from found.variables.items()


def loops(thresholds: "ExpertThresholds") -> str:
    """From how many tokens of an expert on which loop runs."""
    columns = (
        f"columns from {thresholds.columns} tokens on, a last vector from "
        f"{thresholds.last_vector} on"
    )
    parts = [columns] if thresholds.columns else []
    parts += [f"panels from {thresholds.panels} on"] if thresholds.panels else []
    return "; ".join(parts) or "that of few tokens for any number"


def _amx(found: "Diagnosis") -> str:
    if not found.processor.has_amx:
        return "not found"
    return "found" if found.processor.amx_permitted else "found, but Linux refuses it"


def _threads(found: "Diagnosis") -> str:
    processor = found.processor
    quota = processor.quota_cpus
    limit = "" if quota is None else f", limited to the time of {quota:g}"
    return f"{found.threads} on {processor.usable_cpus} CPUs, {processor.usable_cores} cores{limit}"
