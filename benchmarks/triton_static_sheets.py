"""The tables of benchmarks/triton_static.py."""

from collections.abc import Sequence

from paper_sheets import Sheet, percent
from triton_static_report import KernelRow, RooflineRow

from coxcompile.gpu_analysis.targets import Target

LABEL = "bounds from machine code and data sheets, not measurements"


def kernel_sheet(target: Target, rows: Sequence[KernelRow]) -> Sheet:
    """Resources and machine code of each kernel."""
    return Sheet(
        title=f"{target.name} ({target.device}): kernels, {LABEL}",
        note=(
            "tile: outputs x tokens x inputs; MMA: matrix instructions of the loop, and their FLOP "
            "over the tile's; copies: asynchronous ones in the whole kernel"
        ),
        columns=(
            *("kernel", "weights, tile, warps, stages", "registers", "spilled bytes"),
            *("shared KiB", "CTAs/SM", "occupancy", "limited by", "MMA", "FLOP ratio", "copies"),
            *("KiB/step", "FLOP/byte"),
        ),
        rows=[
            (
                row.kernel,
                row.config,
                str(row.registers),
                str(row.spill_bytes),
                f"{row.shared_bytes / 1024:.1f}",
                str(row.ctas),
                percent(row.occupancy),
                row.limiter,
                row.mma,
                "" if row.mma_flops_ratio is None else f"{row.mma_flops_ratio:.2f}",
                row.copies or "none",
                "" if row.step_bytes is None else f"{row.step_bytes / 1024:.1f}",
                "" if row.step_intensity is None else f"{row.step_intensity:.0f}",
            )
            for row in rows
        ],
    )


def roofline_sheet(target: Target, weights: str, rows: Sequence[RooflineRow]) -> Sheet:
    """The least time of each layer's products, at data-sheet rates."""
    return Sheet(
        title=f"{target.name} ({target.device}): roofline of {weights} layers, {LABEL}",
        note=(
            f"peak {target.flops_per_second / 1e12:.4g} TFLOP/s, memory "
            f"{target.memory_bytes_per_second / 1e9:.4g} GB/s; uniform random routing, each active "
            "expert's weights read once; useful: share of the tiles' FLOP that is not padding; µs "
            "at the full rate of each alone, level 2's an assumption; bound: by memory or by MMA"
        ),
        columns=(
            *("layer", "tokens", "product", "tokens/tile", "active experts", "CTAs", "useful"),
            *("FLOP/byte", "ridge", "memory µs", "MMA µs", "L2 µs", "bound"),
        ),
        rows=[
            (
                row.layer.name,
                str(row.tokens),
                name,
                str(row.configuration.block_tokens),
                f"{part.active_experts:.1f}",
                f"{part.ctas:.0f}",
                percent(part.useful_share),
                f"{part.intensity:.0f}",
                f"{part.ridge:.0f}",
                f"{part.memory_seconds * 1e6:.3g}",
                f"{part.matrix_seconds * 1e6:.3g}",
                f"{part.l2_seconds * 1e6:.3g}",
                part.bound,
            )
            for row in rows
            for name, part in (("gate, up", row.gate_up), ("down", row.down))
        ],
    )
