"""docs/paper/README.md: the predictions' tables, pictures and reasons on one page."""

from collections.abc import Mapping
from pathlib import Path

from paper_numbers import SPEEDUPS
from paper_report import Report, reasons
from paper_sheets import between, times
from paper_speedups import spreads
from paper_tables import sheets

PICTURES = {
    "figure_2": "experts' latency by micro-batch",
    "figure_3a": "VRAM and latency by where attention runs",
    "figure_7": "ratios over the baselines",
    "table_3": "ratios step by step",
    "figure_8": "throughput and hit ratio by resident experts",
}

HEAD = """# The paper's figures, predicted

**Predicted, not measured.** Every number here but those marked "paper" comes from the planner's
cost model and the data sheets in `coxcompile/systems.py`; nothing ran on these machines, and no
constant was fitted to a figure of the paper. `make paper` writes this page anew. The paper's
figures are those of arXiv 2605.17889 as far as we have them; where it is open what a figure plots
or for which setting, the setting we took stands beside it.
"""

READING = """## How to read the differences

- **All policies run on one idealised runtime.** Transfers, both processors and both links overlap
  wherever a schedule allows it, so a plan takes what its busiest resource needs. The paper measures
  each baseline's own code. FlexGen's waits for everything after each micro-batch of each layer;
  here a layer waits for its weights, as its authors' own cost model counts, but its micro-batches
  overlap on both processors and both links. The row "baselines overlap nothing" of the sensitivity
  table gives the other extreme.
- **A model that fits into VRAM leaves little to win.** DeepSeek-V2-Lite does on 80 GB: every policy
  has nearly all experts there, and a baseline with one large micro-batch coalesces them as well.
- **Prefill is the same work for everybody.** With many tokens an expert the GPU's products bind
  every policy, so the more of the time is prefill (input 800, output 32), the closer to 1 a ratio.
- **Decode's attention on the CPU is a common floor.** Where it binds both plans, which happens
  with long caches and with 80 GB of VRAM, how the experts run cannot matter.
- **Where the link binds MoE-Lightning in decode and prefill is short, ratios exceed the paper's.**
  The link fetches what VRAM does not hold every step; coxmoe leaves those experts to the CPU, which
  the model takes to read them at the sustained bandwidth of host memory.
- **Attention offloading alone is hard to place in Table 3.** MoE-Lightning has decode's attention
  on the CPU already. A second step that keeps it there (2b) leaves the third nothing to gain; one
  that moves it to the GPU (2a) fetches a cache larger than VRAM in every step.
- **Hit ratio is worth little here.** Coalesced, an expert of a few dozen tokens costs what reading
  its weights costs, on the CPU as on the GPU, whether it is hot or cold. It pays by its tokens only
  when the CPU multiplies many times more slowly than AMX can: the second table of Fig. 8.
- **Absolute speed.** The paper's tokens/s in Table 3 are far below the predicted ones, which are
  close to the machine's limits. A cost that all of the paper's systems share and that the model
  does not have would bring every measured ratio nearer to 1.
"""


def page(report: Report, pictures: Mapping[str, Path]) -> str:
    """The page; the pictures lie beside it."""
    parts = [HEAD, _summary(report), READING]
    for name, sheet in sheets(report).items():
        parts.append(f"## {sheet.title}\n")
        if name in pictures:
            parts.append(f"![{PICTURES[name]}; {report.label}]({pictures[name].name})\n")
        parts.append(sheet.markdown())
        if name == "figure_7":
            lines = [f"- {line}" for line in reasons(report)]
            parts.append("### Why a ratio is outside the paper's range\n")
            parts.append("\n".join(lines or ["- All are inside."]) + "\n")
        if name == "table_3":
            steps = [f"- {s.name} ({s.reading}): {s.why}" for s in report.table_3 if s.why]
            parts.append("### What makes each step's ratio\n")
            parts.append("\n".join(steps) + "\n")
    return "\n".join(parts)


def _summary(report: Report) -> str:
    lines = [
        f"- Of the {row.below + row.inside + row.above} ratios of Fig. 7 over {row.baseline} "
        f"{row.inside} lie inside the paper's {between(SPEEDUPS[row.baseline])}, {row.below} below "
        f"and {row.above} above; the median is {times(row.median)}."
        for row in spreads("as described", report.figure_7)
    ]
    last = report.table_3[-1]
    lines.append(
        f"- Table 3's steps together make {times(last.ratio)}, in the paper "
        f"{times(last.paper_ratio)}, but divide it differently."
    )
    return "## How near they come\n\n" + "\n".join(lines) + "\n"
