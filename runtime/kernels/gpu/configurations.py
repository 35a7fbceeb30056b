"""Which tiles the kernels use: a table, so that nothing is tried out while a model runs."""

import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coxcompile.planner.records import load, save

STATIC_TABLE = Path(__file__).with_name("configurations.json")
"""Made by ``benchmarks/triton_static.py --write-table``: from an analysis, not from timings."""


@dataclass(frozen=True, kw_only=True)
class ProductConfiguration:
    """How one projection is cut into tiles, one for each program.

    Attributes:
        block_outputs: rows of the weights (for gate and up: of each).
        block_inputs: inputs loaded at a time.
        warps: of a program.
        stages: of the software pipeline.
        descriptors: weights are loaded by tensor descriptors (TMA), where their alignment allows.
        persistent: as many programs as run at once, each with several tiles.
    """

    block_outputs: int
    block_inputs: int
    warps: int
    stages: int
    descriptors: bool = False
    persistent: bool = False


@dataclass(frozen=True, kw_only=True)
class ExpertConfiguration:
    """Both projections, over tiles of ``block_tokens`` tokens of one expert."""

    block_tokens: int
    gate_up: ProductConfiguration
    down: ProductConfiguration


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: what it is for, what to use, and how that is known.

    Attributes:
        device: a target ("sm_90", "gfx942"), or the full name of a device it was tuned on.
        weights: "bfloat16", "float16", "float32", "float8", "int8" or "int4".
        tokens_per_expert: the row is for at most so many, on average over the experts that are
            here; a table's largest is for more, too.
        configuration: what to use.
        source: "static", or "tuned on" and the device.
        experts: E; None: any shape, and so for the next two.
        intermediate: I.
        hidden: H.
    """

    device: str
    weights: str
    tokens_per_expert: int
    configuration: ExpertConfiguration
    source: str
    experts: int | None = None
    intermediate: int | None = None
    hidden: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows, in a file of their own."""

    rows: tuple[Row, ...]


def tuned_table() -> Path:
    """Where ``coxmoe tune`` keeps what it measured: COXMOE_TUNED, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coxcompile"
    return Path(os.environ.get("COXMOE_TUNED") or default / "configurations.json")


def load_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a file that ``save_rows`` wrote.

    Raises:
        RecordError: it is not such a file.
    """
    return load(Table, path).rows


def save_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a table, making its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(Table(tuple(rows)), path)


@functools.cache
def load_table() -> tuple[Row, ...]:
    """The user's tuned rows, if there are any, and those of the static table; once a process."""
    tuned = tuned_table()
    return (*(load_rows(tuned) if tuned.exists() else ()), *load_rows(STATIC_TABLE))


def look_up(
    rows: Sequence[Row],
    devices: Sequence[str],
    weights: str,
    tokens_per_expert: float,
    *,
    experts: int,
    intermediate: int,
    hidden: int,
) -> ExpertConfiguration:
    """The configuration for a call.

    The first of ``devices`` (a device's name, its target, targets whose code it runs) with any rows
    counts; of its rows those of this shape, else those of any shape; of these the one for the
    fewest tokens that are enough.

    Raises:
        LookupError: no device has rows for these weights.
    """
    for device in devices:
        mine = [row for row in rows if (row.device, row.weights) == (device, weights)]
        shape = (experts, intermediate, hidden)
        exact = [row for row in mine if (row.experts, row.intermediate, row.hidden) == shape]
        for candidates in (exact, [row for row in mine if row.experts is None]):
            if candidates:
                ordered = sorted(candidates, key=lambda row: row.tokens_per_expert)
                enough = (r for r in ordered if r.tokens_per_expert >= tokens_per_expert)
                return next(enough, ordered[-1]).configuration
    known = sorted({row.device for row in rows if row.weights == weights})
    raise LookupError(
        f"no configuration for {weights} experts on {' or '.join(devices)}, only for "
        f"{', '.join(known)}; run coxmoe tune on this device, or use "
        'options={"gpu_kernels": "torch"}'
    )
