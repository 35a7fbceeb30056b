"""How well stratification places experts on a trained model, and when it has paid for itself.

The model is examples/tiny_moe, the data held-out text of this machine. Each strategy decides which
experts are resident; what they hit is judged on the choices of a full pass over the whole dataset.
Seconds are measured here; when stratification has paid for itself is predicted (payback.py).

    python benchmarks/stratification.py
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from held_out_inputs import EXAMPLES, LENGTHS, held_out_dataset
from payback import Batch, Payback, pay_back
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from coxcompile import ActivationMap, stratify
from coxcompile.planner.counting_model import CountingModel
from coxcompile.planner.model_spec import model_from_config
from coxcompile.planner.strategies import full_pass, random_placement, random_sample

PERCENTAGES = (10, 25, 50)
RANDOM_PLACEMENTS = 100


@dataclass(frozen=True)
class Row:
    """One strategy over all its seeds, judged on the full pass.

    ``hit_ratios``: by percentage of experts resident in each layer (least, mean, most).
    ``seconds``: of one run, mean; compiling the model, done once before, is not in it.
    ``misses``: of one batch at 25%, mean.
    """

    strategy: str
    runs: int
    tokens: int
    seconds: float
    hit_ratios: dict[int, tuple[float, float, float]]
    misses: float


def residents(experts: int, percentage: int) -> int:
    """How many of a layer's experts the percentage is."""
    return max(1, round(experts * percentage / 100))


def judged(maps: Sequence[ActivationMap], seconds: float, full: ActivationMap, batch: Batch) -> Row:
    """The row of one strategy's maps, which took ``seconds`` together."""
    hit_ratios = {}
    for percentage in PERCENTAGES:
        number = residents(full.experts, percentage)
        ratios = [full.hit_ratio_of(placement, number) for placement in maps]
        hit_ratios[percentage] = (min(ratios), statistics.mean(ratios), max(ratios))
    quarter = residents(full.experts, 25)
    return Row(
        strategy=maps[0].strategy,
        runs=len(maps),
        tokens=round(statistics.mean(placement.tokens for placement in maps)),
        seconds=seconds / len(maps),
        hit_ratios=hit_ratios,
        misses=statistics.mean(batch.misses(full, placement, quarter) for placement in maps),
    )


def compare(
    counting: CountingModel, dataset: list[torch.Tensor], fraction: float, seeds: int, batch: Batch
) -> tuple[list[Row], ActivationMap]:
    """All strategies, worst informed first, and the full pass' map."""
    started = time.perf_counter()
    full = full_pass(counting, dataset)
    whole = judged([full], time.perf_counter() - started, full, batch)
    placements = [
        random_placement(full.layers, full.experts, seed=seed) for seed in range(RANDOM_PLACEMENTS)
    ]
    rows = [judged(placements, 0.0, full, batch)]
    for strategy in (random_sample, stratify):
        started = time.perf_counter()
        maps = [
            strategy(counting, dataset, fraction=fraction, seed=seed, progress=False)
            for seed in range(seeds)
        ]
        rows.append(judged(maps, time.perf_counter() - started, full, batch))
    return [*rows, whole], full


def table_of(rows: Sequence[Row]) -> Table:
    """One row a strategy."""
    table = Table(title="hit ratio on the full pass's choices: mean over seeds, ± half their range")
    table.add_column("strategy")
    headings = ("tokens probed", "seconds", *(f"{p}% resident" for p in PERCENTAGES))
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        cells = []
        for least, mean, most in row.hit_ratios.values():
            spread = f" ±{50 * (most - least):.1f}" if row.runs > 1 else ""
            cells.append(f"{mean:.1%}{spread}")
        table.add_row(row.strategy, f"{row.tokens:,}", f"{row.seconds:.2f}", *cells)
    return table


def sentences(rows: Sequence[Row], compiling: float, paid: Payback) -> list[str]:
    """What the table means at 25% residency."""
    placed, _, stratified, whole = (row.hit_ratios[25][1] * 100 for row in rows)
    batch = paid.batch
    return [
        f"at 25% residency stratification gains {stratified - placed:.1f} points over random "
        f"placement, the full pass {whole - placed:.1f}; compiling took {compiling:.1f} s, once",
        f"predicted, not measured: in {batch.sequences} sequences of {batch.input_tokens} + "
        f"{batch.output_tokens} tokens it avoids {paid.misses_avoided_per_batch:.0f} misses of "
        f"{rows[0].misses:.0f}, or {paid.seconds_saved_per_batch * 1000:.1f} ms on {paid.system} "
        f"({paid.expert_bytes:,} bytes an expert, {paid.seconds_per_miss * 1e6:.1f} µs a miss): "
        f"paid for after {paid.batches} batches, with compiling {paid.batches_with_compiling}",
    ]


def main() -> None:
    """Measure, print, perhaps write JSON."""
    parser = argparse.ArgumentParser(description="Compare strategies for placing experts.")
    parser.add_argument("--model", type=Path, default=EXAMPLES / "tiny_moe", help="its checkpoint")
    parser.add_argument("--inputs", type=int, default=3000, help="of the dataset (default: 3000)")
    parser.add_argument("--fraction", type=float, default=0.05, help="probed (default: 0.05)")
    parser.add_argument("--seeds", type=int, default=5, help="runs a strategy (default: 5)")
    parser.add_argument("--system", default="rtx6000ada-8452y", help="whose link a miss crosses")
    parser.add_argument("--batch", type=int, default=8, help="sequences a batch (default: 8)")
    parser.add_argument("--output", type=int, default=256, help="tokens generated (default: 256)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if not (options.model / "config.json").exists():
        parser.error(
            f"--model: no checkpoint in {options.model}; examples/train_tiny_moe.py makes one"
        )
    console = Console()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    dataset, sizes = held_out_dataset(options.inputs, seed=0)
    console.print(f"{len(dataset)} inputs of {', '.join(map(str, LENGTHS))} tokens: {sizes}")
    input_tokens = round(statistics.mean(map(len, dataset)))
    batch = Batch(sequences=options.batch, input_tokens=input_tokens, output_tokens=options.output)

    counting = CountingModel(model)
    started = time.perf_counter()
    for inputs in (2, 1):  # a graph each
        counting.count(torch.stack([dataset[0]] * inputs))
    compiling = time.perf_counter() - started
    rows, full = compare(counting, dataset, options.fraction, options.seeds, batch)
    placed, _, stratified, _ = rows
    paid = pay_back(
        placed.misses,
        stratified.misses,
        batch=batch,
        seconds=stratified.seconds,
        compiling_seconds=compiling,
        expert_bytes=model_from_config(model.config).expert_bytes,
        system=options.system,
    )
    console.print(table_of(rows))
    for sentence in sentences(rows, compiling, paid):
        console.print(sentence, highlight=False)
    if options.json:
        figures = {
            "domains": sizes,
            "entropy": full.entropy().tolist(),
            "compiling_seconds": compiling,
            "strategies": [asdict(row) for row in rows],
            "payback": asdict(paid),
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
