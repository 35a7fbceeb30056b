"""The tables of Fig. 2, 3a, 8 and Table 3 beside the paper's figures, and all tables by name."""

from paper_numbers import (
    BATCH,
    EAS_SPEEDUP,
    EXPERTS_SHARE,
    HALVING,
    LABEL,
    OFFLOADING_SAVES,
    RESIDENT_LIMITS,
    SYSTEM_I,
)
from paper_report import Report
from paper_sheets import Sheet, percent, seconds, times
from paper_speedup_tables import sensitivity_sheet, speedup_sheet


def sheets(report: Report) -> dict[str, Sheet]:
    """By the name of the figure, or of what belongs to it."""
    return {
        "figure_2": _coalescing(report),
        "figure_3a": _attention(report),
        "figure_7": speedup_sheet(report),
        "figure_7_sensitivity": sensitivity_sheet(report),
        "table_3": _steps(report),
        "figure_8": _placement(report),
        "figure_8_sensitivity": _placement_sensitivity(report),
    }


def _coalescing(report: Report) -> Sheet:
    return Sheet(
        title=f"Fig. 2: micro-batches and the experts' latency ({LABEL})",
        note=(
            f"Qwen3-30B-A3B, {SYSTEM_I}, a decoding step of {2 * max(HALVING)} sequences; the "
            f"paper's experts take {percent(EXPERTS_SHARE)} of the latency"
        ),
        columns=(
            *("experts on", "μ", "tokens an expert", "experts", "over twice the μ", "paper"),
            "experts' share",
        ),
        rows=[
            (
                {"cpu": "CPU", "link": "GPU, fetched", "gpu": "GPU, resident"}[row.place],
                str(row.micro_batch),
                f"{row.expert_rows:.3g}",
                seconds(row.seconds),
                times(row.over_double),
                times(row.paper_over_double),
                percent(row.experts_share),
            )
            for row in report.figure_2
        ],
    )


def _attention(report: Report) -> Sheet:
    return Sheet(
        title=f"Fig. 3a: where attention runs ({LABEL})",
        note=(
            f"Qwen3-30B-A3B, {SYSTEM_I}, batch {BATCH}, 97→256, coalesced; the paper gives one "
            f"share for each device, and {percent(OFFLOADING_SAVES)} less latency on the CPU"
        ),
        columns=(
            *("stage", "attention on", "VRAM for experts", "paper", "cache in VRAM", "latency"),
            "change",
        ),
        rows=[
            (
                row.stage,
                row.device.upper(),
                percent(row.experts_share),
                percent(row.paper_experts_share),
                f"{row.cache_in_vram:.0%}",
                seconds(row.seconds),
                f"{row.latency_change:+.0%}" if row.device == "cpu" else "",
            )
            for row in report.figure_3a
        ],
    )


def _steps(report: Report) -> Sheet:
    return Sheet(
        title=f"Table 3: step by step ({LABEL})",
        note=f"Qwen3-30B-A3B, {SYSTEM_I}, batch 512, 1320→128",
        columns=(
            *("step", "plan", "hits in prefill, decode", "tokens/s", "ratio"),
            *("paper, tokens/s", "paper, ratio"),
        ),
        rows=[
            (
                step.name,
                step.reading,
                f"{step.outcome.prefill.hit_ratio:.0%}, {step.outcome.decode.hit_ratio:.0%}",
                f"{step.outcome.tokens_per_second:.0f}",
                times(step.ratio),
                f"{step.paper_tokens_per_second:.1f}",
                times(step.paper_ratio),
            )
            for step in report.table_3
        ],
    )


def _placement(report: Report) -> Sheet:
    limits = ", ".join(f"{n} experts of {model}" for model, n in RESIDENT_LIMITS.items())
    return Sheet(
        title=f"Fig. 8: hottest experts resident against random ones ({LABEL})",
        note=(
            f"{SYSTEM_I}, batch 512, 1320→128, a made-up routing with 40 points more hits at "
            f"{limits}; in the paper these are worth up to {times(EAS_SPEEDUP)}"
        ),
        columns=("model", "resident", "hits", "at random", "tokens/s", "at random", "gain"),
        rows=[
            (
                row.model,
                str(row.resident),
                percent(row.hit_ratio),
                percent(row.random_hit_ratio),
                f"{row.tokens_per_second:.0f}",
                f"{row.random_tokens_per_second:.0f}",
                times(row.gain),
            )
            for row in report.figure_8
        ],
    )


def _placement_sensitivity(report: Report) -> Sheet:
    return Sheet(
        title=f"Fig. 8 with slower CPU products ({LABEL})",
        note="The gain at the paper's number of resident experts",
        columns=("model", "resident", "CPU slower by", "gain"),
        rows=[
            (row.model, str(row.resident), f"{row.cpu_slowdown:.0f}x", times(row.gain))
            for row in report.figure_8_sensitivity
        ],
    )
