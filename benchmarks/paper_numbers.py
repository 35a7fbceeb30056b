"""What the paper (arXiv 2605.17889) reports and for which settings, as far as its digest has it."""

from dataclasses import dataclass

from coxcompile.planner.workload import Workload, uniform_workload

LABEL = "predicted, not measured"

MODELS = ("mixtral-8x7b", "deepseek-v2-lite", "qwen3-30b-a3b")
SYSTEMS = {"I": "rtx6000ada-8452y", "II": "a100-8452y", "III": "h100-8452y"}
QWEN3, DEEPSEEK, SYSTEM_I = "qwen3-30b-a3b", "deepseek-v2-lite", SYSTEMS["I"]

HALVING = {128: 2.06, 64: 1.68, 32: 2.09}
"""§1: latency over that of twice the micro-batch (Qwen3)."""
EXPERTS_SHARE = 0.975
"""§1: the experts' share of Qwen3's latency."""

VRAM_SHARES = {"gpu": 0.115, "cpu": 0.585}
"""§3.2: share of VRAM left to experts, by where attention runs."""
OFFLOADING_SAVES = 0.40
"""§3.2: of the latency, by attention on the CPU."""

SPEEDUPS = {"moe-lightning": (1.7, 2.4), "flexgen": (3.4, 7.1)}
"""Fig. 7: ranges of CoX-MoE's tokens/s over each baseline's."""
BATCH = 1024
LENGTHS = ((97, 32), (97, 256), (800, 32), (800, 256))
"""Fig. 7: (input, output) tokens."""

RESIDENT_LIMITS = {DEEPSEEK: 30, QWEN3: 50}
"""§4.3: up to so many resident experts a layer, EAS gains EAS_POINTS over random placement."""
EAS_POINTS = 0.40
EAS_SPEEDUP = 1.50
"""§4.3: what that is worth in throughput, at most."""

EAS_HIT_RATIO = 0.80
"""Table 3, last step."""


@dataclass(frozen=True)
class Step:
    """A row of Table 3; ratio: over the row before."""

    name: str
    tokens_per_second: float
    ratio: float | None = None


STEPS = (
    Step("MoE-Lightning", 16.8),
    Step("+ coalescing and AMX co-execution", 25.5, 1.51),
    Step("+ attention offloading", 32.3, 1.26),
    Step("+ EAS at 80% hit ratio", 34.1, 1.05),
)


def table_3_workload() -> Workload:
    """B = 512, input 1320, output 128."""
    return uniform_workload(512, 1320, 128)
