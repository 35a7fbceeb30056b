"""Policies side by side on the emulated accelerator: a model whose weights are 4x its "VRAM".

Everything is slowed down to a machine like the paper's system I (scaled_system.py) by sleeping, so
a timeline is real time of that emulated machine: no measurement of a GPU.

    python examples/coexecution.py [--policies coxmoe,moe-lightning] [--json build/coexecution.json]
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from coexecution_policies import Subject, subjects
from coexecution_report import print_ratios, print_table
from coexecution_runs import Comparison, Row

BATCH, INPUT_TOKENS, OUTPUT_TOKENS = 48, 48, 5
SLOWDOWN = 1000.0
DEFAULT = ("flexgen", "moe-lightning", "coalescing", "offloading", "coxmoe", "cpu-only")
WEIGHTS_OVER_VRAM = 4


def main() -> None:
    """Run each policy, check its outputs, print and write what came."""
    arguments = _arguments()
    comparison = Comparison(
        BATCH, INPUT_TOKENS, OUTPUT_TOKENS, SLOWDOWN * arguments.slowdown, WEIGHTS_OVER_VRAM
    )
    chosen = [subject for subject in subjects() if subject.name in arguments.policies]
    rows: list[tuple[Subject, Row]] = []
    for subject in chosen:
        row = comparison.run(subject, arguments.json.parent)
        rows.append((subject, row))
        print(f"{subject.name}: {row.tokens_per_second:.1f} tokens/s", flush=True)
    print_table([row for _, row in rows], comparison)
    print_ratios({subject.name: row for subject, row in rows})
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps([asdict(row) for _, row in rows], indent=2) + "\n")
    print(f"\nrows: {arguments.json}; timelines for https://ui.perfetto.dev beside it")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [subject.name for subject in subjects()]
    parser.add_argument(
        "--policies",
        type=lambda text: text.split(","),
        default=list(DEFAULT),
        help=f"some of {', '.join(names)}; default: {','.join(DEFAULT)}",
    )
    parser.add_argument(
        "--slowdown",
        type=float,
        default=1.0,
        help="slow down further, for busy machines (default: 1)",
    )
    parser.add_argument("--json", type=Path, default=Path("build/coexecution.json"))
    arguments = parser.parse_args()
    if unknown := set(arguments.policies) - set(names):
        parser.error(f"--policies: {unknown.pop()!r} is none of {', '.join(names)}")
    return arguments


if __name__ == "__main__":
    main()
