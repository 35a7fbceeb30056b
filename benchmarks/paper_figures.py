"""Draws the predictions as small pictures, each labelled as what it is."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from paper_numbers import LABEL, RESIDENT_LIMITS, SPEEDUPS, SYSTEMS
from paper_report import Report
from paper_sheets import between

matplotlib.use("agg")

OURS, PAPER, OTHER = "#1b6ca8", "#e08e2b", "#9aa5b1"


def draw(report: Report, folder: Path) -> dict[str, Path]:
    """Writes a PNG for each figure and for Table 3 into ``folder``; their paths by name."""
    drawings: dict[str, Callable[[Report], Figure]] = {
        "figure_2": _coalescing,
        "figure_3a": _attention,
        "figure_7": _speedups,
        "table_3": _steps,
        "figure_8": _placement,
    }
    paths = {}
    for name, drawing in drawings.items():
        figure = drawing(report)
        figure.text(0.995, 0.01, LABEL, ha="right", va="bottom", color="#b00020", weight="bold")
        paths[name] = folder / f"{name}.png"
        # Without metadata equal predictions give equal files.
        figure.savefig(paths[name], dpi=72, metadata={"Software": None})
    return paths


def _new(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    # The label has the strip below.
    layout = ConstrainedLayoutEngine(rect=(0, 0.04, 1, 0.96))
    figure = Figure(figsize=(width, height), layout=layout)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _coalescing(report: Report) -> Figure:
    figure, (axes, halving) = _new(1, 2, 9, 3.8)
    for place, name in (("link", "fetched over PCIe"), ("cpu", "CPU"), ("gpu", "VRAM")):
        rows = [row for row in report.figure_2 if row.place == place]
        sizes = [row.micro_batch for row in rows]
        axes.plot(sizes, [row.seconds for row in rows], "o-", label=name)
        later = [row for row in rows if row.over_double is not None]
        ratios = [row.over_double or 0.0 for row in later]
        halving.plot([row.micro_batch for row in later], ratios, "o-", label=name)
    papers = {row.micro_batch: row.paper_over_double or 0.0 for row in later}
    halving.plot(list(papers), list(papers.values()), "s--", color=PAPER, label="paper")
    for panel in (axes, halving):
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.invert_xaxis()
        panel.set_xlabel("micro-batch, sequences")
        panel.legend(fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel("experts of a decoding step, s")
    halving.set_ylabel("over twice the micro-batch")
    halving.set_ylim(0, 2.5)
    figure.suptitle("Fig. 2: Qwen3, experts once a micro-batch")
    return figure


def _attention(report: Report) -> Figure:
    figure, (vram, latency) = _new(1, 2, 9, 3.8)
    rows = report.figure_3a
    names = [f"{row.stage},\n{row.device.upper()}" for row in rows]
    bottom = [0.0] * len(rows)
    for item in rows[0].vram_bytes:
        shares = [row.vram_bytes.get(item, 0.0) / row.capacity_bytes for row in rows]
        if max(shares) < 0.01:
            continue
        vram.bar(names, shares, bottom=bottom, label=item)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    papers = [row.paper_experts_share for row in rows]
    vram.plot(names, papers, "s", color=PAPER, markeredgecolor="black", label="paper, experts")
    vram.set_ylabel("share of VRAM")
    vram.set_ylim(0, 1.6)
    vram.legend(fontsize=7, ncol=2, loc="upper left")
    bars = latency.bar(names, [row.seconds for row in rows], color=OURS)
    changes = [f"{row.latency_change:+.0%}" if row.device == "cpu" else "" for row in rows]
    latency.bar_label(bars, changes)
    latency.set_ylabel("latency, s (paper: -40% on the CPU)")
    figure.suptitle("Fig. 3a: Qwen3, attention on the GPU or on the CPU")
    return figure


def _speedups(report: Report) -> Figure:
    figure, panels = _new(len(SPEEDUPS), 1, 11, 6.4)
    numerals = {name: numeral for numeral, name in SYSTEMS.items()}
    for panel, (baseline, bounds) in zip(panels, SPEEDUPS.items(), strict=True):
        ratios = [
            next(s.ratio for s in cell.speedups if s.baseline == baseline)
            for cell in report.figure_7
        ]
        inside = [bounds[0] <= ratio <= bounds[1] for ratio in ratios]
        panel.axhspan(*bounds, color=PAPER, alpha=0.25, label=f"paper: {between(bounds)}")
        places = range(len(ratios))
        panel.bar(places, ratios, color=[OURS if within else OTHER for within in inside])
        panel.axhline(1, color="black", linewidth=0.7)
        panel.set_ylabel(f"coxmoe over\n{baseline}")
        panel.legend(fontsize=8, loc="upper right")
        labels = [
            f"{numerals[cell.setting.system]} {cell.setting.model.split('-')[0]} "
            f"{cell.setting.input_tokens}→{cell.setting.output_tokens}"
            for cell in report.figure_7
        ]
        panel.set_xticks(list(places), labels, rotation=90, fontsize=6)
        panel.margins(x=0.01)
    figure.suptitle("Fig. 7: tokens/s over the baselines; blue: inside the paper's range")
    return figure


def _steps(report: Report) -> Figure:
    figure, (axes,) = _new(1, 1, 8, 3.8)
    rows = [step for step in report.table_3 if step.ratio is not None]
    places = range(len(rows))
    for shift, color, name, values in (
        (-0.2, OURS, "predicted", [row.ratio or 0.0 for row in rows]),
        (0.2, PAPER, "paper", [row.paper_ratio or 0.0 for row in rows]),
    ):
        bars = axes.bar([p + shift for p in places], values, 0.4, color=color, label=name)
        axes.bar_label(bars, fmt="%.2f")
    labels = [f"{row.name}\n({row.reading.split(':')[0]})" for row in rows]
    axes.set_xticks(
        list(places), [label.replace(" and ", "\nand ") for label in labels], fontsize=7
    )
    axes.axhline(1, color="black", linewidth=0.7)
    axes.set_ylabel("tokens/s over the step before")
    axes.margins(y=0.12)
    axes.legend(fontsize=8)
    figure.suptitle("Table 3: Qwen3, from MoE-Lightning to CoX-MoE")
    return figure


def _placement(report: Report) -> Figure:
    figure, panels = _new(1, len(RESIDENT_LIMITS), 9, 3.8)
    for panel, (model, limit) in zip(panels, RESIDENT_LIMITS.items(), strict=True):
        rows = [row for row in report.figure_8 if row.model == model]
        resident = [row.resident for row in rows]
        throughput = [row.tokens_per_second for row in rows]
        panel.plot(resident, throughput, "-", color=OURS, label="hottest, tokens/s")
        random = [row.random_tokens_per_second for row in rows]
        panel.plot(resident, random, "--", color=OTHER, label="random, tokens/s")
        panel.set_ylim(bottom=0)
        panel.set_xlabel(f"resident experts a layer (paper: up to {limit})")
        panel.set_title(model, fontsize=9)
        hits = panel.twinx()
        hits.plot(
            resident, [row.hit_ratio for row in rows], "-", color=PAPER, label="hottest, hits"
        )
        hits.plot(
            resident, [row.random_hit_ratio for row in rows], ":", color=PAPER, label="random, hits"
        )
        hits.set_ylim(0, 1.02)
        lines = [*panel.get_lines(), *hits.get_lines()]
        panel.legend(
            lines, [str(line.get_label()) for line in lines], fontsize=7, loc="lower right"
        )
        panel.axvline(limit, color="black", linewidth=0.5)
    panels[0].set_ylabel("tokens/s")
    figure.suptitle("Fig. 8: throughput (left axes) and hit ratio (right axes)")
    return figure
