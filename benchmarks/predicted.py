"""The cost model against this machine: predicted and measured time of whole compiled models.

Layers of three large models, with random weights, compiled with backend="coxmoe": prefill over a
batch of prompts and a decoding step. Predicted from the calibration (`coxmoe calibrate`), its two
peaks replaced by those measured right beside each timing, because bandwidth drifts; and from how
often each expert is chosen in that very run. Medians of interleaved repeats.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, StaticCache

from coxcompile.detection import detect_system
from coxcompile.hardware import HardwareSpec
from coxcompile.measurement.roofline import Roofline, measure_roofline
from coxcompile.measurement.scheduling import scheduled_first
from coxcompile.planner.cost_model import predict_stage
from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.model_spec import ModelSpec, model_from_config
from coxcompile.planner.plan import Stage
from coxcompile.planner.policies import make_plan
from coxcompile.planner.workload import uniform_workload

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from qwen3_moe import LAYER as QWEN3_LAYER

CONFIGS: dict[str, transformers.PreTrainedConfig] = {
    "Qwen3-30B-A3B": transformers.Qwen3MoeConfig(
        **{**QWEN3_LAYER, "vocab_size": 32000, "num_hidden_layers": 3}
    ),
    "Mixtral-8x7B": transformers.MixtralConfig(num_hidden_layers=2),
    "OLMoE-1B-7B": transformers.OlmoeConfig(
        num_hidden_layers=6, num_experts=64, num_experts_per_tok=8, intermediate_size=1024
    ),
}
"""Real layers, as few as keep each under 6 GB."""

PROMPT_TOKENS = 128
DECODED = 6


@dataclass(frozen=True)
class Row:
    """One stage of one model; seconds of a prefill, or of one decoding step."""

    model: str
    stage: str
    batch: int
    predicted_seconds: float
    measured_seconds: float
    error: float
    gemm_flops_per_second: float
    read_bytes_per_second: float


class Runner:
    """A compiled model with its cache; inputs are drawn anew for each repeat."""

    def __init__(self, model: PreTrainedModel, batch: int) -> None:
        config = model.config
        self.vocabulary, self.batch = config.vocab_size, batch
        length = PROMPT_TOKENS + DECODED + 1
        self.cache = StaticCache(config=config, max_cache_len=length)
        heads = config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // (
            config.num_attention_heads
        )
        self.cache.early_initialization(batch, heads, width, torch.bfloat16, torch.device("cpu"))
        self.model = model
        self.compiled = torch.compile(model, backend="coxmoe", dynamic=False)

    def run(self, forward: Callable[..., object]) -> tuple[float, float]:
        """Seconds of a prefill and of one decoding step (median of a few)."""
        self.cache.reset()
        prompts = torch.randint(0, self.vocabulary, (self.batch, PROMPT_TOKENS))
        prefill = self._timed(forward, prompts)
        steps = [
            self._timed(forward, torch.randint(0, self.vocabulary, (self.batch, 1)))
            for _ in range(DECODED)
        ]
        return prefill, statistics.median(steps)

    def _timed(self, forward: Callable[..., object], ids: torch.Tensor) -> float:
        started = time.perf_counter()
        forward(input_ids=ids, past_key_values=self.cache, logits_to_keep=1)
        return time.perf_counter() - started

    def choices(self, spec: ModelSpec) -> Floats:
        """The share of tokens that choose each expert, [layers, experts], in eager.

        Of both stages together, whose tokens are equally random: a few decoding steps alone would
        make the choices look more concentrated than they are.
        """
        counts = np.zeros((spec.moe_layers, spec.experts))
        modules = [m for m in self.model.modules() if hasattr(m, "gate_up_proj")]

        def count(layer: int) -> Callable[..., None]:
            def hook(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
                chosen = torch.bincount(arguments[1].flatten(), minlength=spec.experts)
                counts[layer] += chosen.numpy()

            return hook

        handles = [m.register_forward_pre_hook(count(i)) for i, m in enumerate(modules)]
        self.run(self.model)
        for handle in handles:
            handle.remove()
        return spec.top_k * counts / counts.sum(axis=1, keepdims=True)


STAGES: tuple[Stage, ...] = ("prefill", "decode")


def beside(hardware: HardwareSpec, roofline: Roofline) -> HardwareSpec:
    """The calibrated machine with the peaks of this minute."""
    cpu = replace(
        hardware.cpu,
        flops_per_second=roofline.gemm_flops_per_second,
        memory_bytes_per_second=roofline.read_bytes_per_second,
    )
    return replace(hardware, cpu=cpu)


def measure(
    names: Sequence[str], batches: Sequence[int], repeats: int, hardware: HardwareSpec
) -> list[Row]:
    """Rows for each model, batch and stage."""
    rows = []
    for name in names:
        config = CONFIGS[name]
        spec = model_from_config(config, name)
        model = build(config)
        for batch in batches:
            runner = Runner(model, batch)
            runner.run(runner.compiled)
            probabilities = runner.choices(spec)
            workload = uniform_workload(batch, PROMPT_TOKENS, DECODED + 1)
            plan = make_plan("cpu-only", spec, hardware, workload)
            found: dict[Stage, list[tuple[float, float, Roofline]]] = {s: [] for s in STAGES}
            for _ in range(repeats):
                with scheduled_first():
                    before = measure_roofline()
                    measured = runner.run(runner.compiled)
                    after = measure_roofline()
                roofline = Roofline(
                    (before.gemm_flops_per_second + after.gemm_flops_per_second) / 2,
                    (before.read_bytes_per_second + after.read_bytes_per_second) / 2,
                )
                for stage, seconds in zip(STAGES, measured, strict=True):
                    prediction = predict_stage(
                        plan.stage(stage),
                        stage,
                        spec,
                        beside(hardware, roofline),
                        workload,
                        probabilities,
                    )
                    found[stage].append((prediction.step_seconds, seconds, roofline))
            rows += [row_of(name, stage, batch, found[stage]) for stage in STAGES]
        torch._dynamo.reset()
    return rows


def row_of(
    model: str, stage: str, batch: int, found: Sequence[tuple[float, float, Roofline]]
) -> Row:
    """Medians; the error is that of the median ratio."""
    ratio = statistics.median(predicted / measured for predicted, measured, _ in found)
    return Row(
        model,
        stage,
        batch,
        statistics.median(predicted for predicted, _, _ in found),
        statistics.median(measured for _, measured, _ in found),
        ratio - 1,
        statistics.median(roofline.gemm_flops_per_second for _, _, roofline in found),
        statistics.median(roofline.read_bytes_per_second for _, _, roofline in found),
    )


def build(config: transformers.PreTrainedConfig) -> PreTrainedModel:
    """The model in bfloat16 with random weights."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        config.dtype = torch.bfloat16
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)
        torch.nn.Module.eval(model)
        return model
    finally:
        torch.set_default_dtype(default)


def print_table(rows: Sequence[Row], console: Console) -> None:
    """One line a stage, with the roofline measured beside it."""
    table = Table(title="predicted against measured, on this machine's CPU")
    for heading in ("model", "stage", "batch", "predicted", "measured", "error", "roofline"):
        table.add_column(heading, justify="left" if heading in ("model", "stage") else "right")
    for row in rows:
        table.add_row(
            row.model,
            row.stage,
            str(row.batch),
            f"{row.predicted_seconds * 1e3:.1f} ms",
            f"{row.measured_seconds * 1e3:.1f} ms",
            f"{row.error:+.0%}",
            f"{row.gemm_flops_per_second / 1e9:.0f} GFLOP/s, "
            f"{row.read_bytes_per_second / 1e9:.0f} GB/s",
        )
    console.print(table)


def main() -> None:
    """Measure, print, perhaps write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=CONFIGS, help="repeat for several")
    parser.add_argument("--batch", type=int, action="append", help="repeat for several (4, 16)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    with torch.no_grad():
        rows = measure(
            arguments.model or list(CONFIGS),
            arguments.batch or [4, 16],
            arguments.repeats,
            detect_system(),
        )
    # Into a pipe, rich would cut the table to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 110)
    print_table(rows, console)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
