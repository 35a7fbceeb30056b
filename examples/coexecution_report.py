"""The co-execution demo's table, and its ratios beside the paper's."""

from collections.abc import Mapping, Sequence

from coexecution_runs import Comparison, Row
from rich.console import Console
from rich.table import Table

PAPER = (
    ("coxmoe", "moe-lightning", "1.7-2.4 (fig. 7), 2.03 (table 3)"),
    ("coxmoe", "flexgen", "3.4-7.1 (fig. 7)"),
    ("moe-lightning", "flexgen", ""),
    ("coalescing", "moe-lightning", "1.51 (table 3)"),
    ("offloading", "coalescing", "1.26 (table 3)"),
    ("coxmoe", "offloading", "1.05 (table 3)"),
)
"""Which policy over which, and what the paper has."""


def print_table(rows: Sequence[Row], comparison: Comparison) -> None:
    """One line a policy."""
    table = Table(
        title=f"{comparison.spec.total_bytes / 1e6:.0f} MB of weights, "
        f"{comparison.vram / 1e6:.0f} MB of VRAM, {comparison.hardware.name}: emulated"
    )
    for heading in ("policy", "tokens/s", "predicted", "prefill s", "step s", "serialised"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for heading in ("MB to", "MB from", "peak MB", "hits", "error"):
        table.add_column(heading, justify="right")
    for row in rows:
        tokens, prefill, step = (
            f"({measured / predicted - 1:+.0%})"
            for measured, predicted in (
                (row.tokens_per_second, row.predicted_tokens_per_second),
                (row.prefill_seconds, row.predicted_prefill_seconds),
                (row.step_seconds, row.predicted_step_seconds),
            )
        )
        table.add_row(
            row.policy,
            f"{row.tokens_per_second:.1f}",
            f"{row.predicted_tokens_per_second:.1f} {tokens}",
            f"{row.prefill_seconds:.2f} {prefill}",
            f"{row.step_seconds:.3f} {step}",
            f"{row.serialised_seconds / row.step_seconds:.2f}x",
            f"{row.bytes_h2d / 1e6:.0f}",
            f"{row.bytes_d2h / 1e6:.1f}",
            f"{row.peak_device_bytes / 1e6:.1f}",
            f"{row.hit_ratio:.0%}",
            f"{row.max_relative_error:.1e}",
        )
    Console(width=150).print(table)


def print_ratios(rows: Mapping[str, Row]) -> None:
    """What each step gives, beside the paper's."""
    table = Table(title="tokens/s over tokens/s, emulated and in the paper")
    for heading in ("ratio", "here", "predicted", "paper"):
        table.add_column(heading)
    for name, over, paper in PAPER:
        if name in rows and over in rows:
            one, other = rows[name], rows[over]
            table.add_row(
                f"{name} / {over}",
                f"{one.tokens_per_second / other.tokens_per_second:.2f}",
                f"{one.predicted_tokens_per_second / other.predicted_tokens_per_second:.2f}",
                paper,
            )
    Console(width=150).print(table)
