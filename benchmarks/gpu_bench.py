"""Measure what a GPU does for Mixture-of-Experts, on the one at hand, in under eight minutes.

The expert kernels beside torch's grouped_mm and the roofline, models end to end beside eager and
Inductor, policies side by side, and copies beside each other and beside work. Without a GPU it says
so and ends.

    python benchmarks/gpu_bench.py --json build/gpu_bench.json --markdown build/gpu_bench.md
"""

import sys
from pathlib import Path

import torch
from gpu_bench_kernels import kernel_cases
from gpu_bench_transfers import transfer_cases
from gpu_cases import Case, Section
from gpu_main import main


# Imported only by workers that need it: transformers takes seconds.
def _model_cases(device: torch.device) -> list[Case]:
    from gpu_bench_models import model_cases

    return model_cases(device)


def _policy_cases(device: torch.device) -> list[Case]:
    from gpu_bench_policies import policy_cases

    return policy_cases(device)


# One worker each: what is timed has the machine to itself.
SECTIONS = (
    Section("kernels", "Expert kernels (medians)", kernel_cases, 70, 60),
    Section("transfers", "Copies and work together", transfer_cases, 20, 60),
    Section("models", "A model that fits (medians)", _model_cases, 130, 100),
    Section("policies", "Policies, weights 4x the VRAM (medians)", _policy_cases, 160, 100),
)

if __name__ == "__main__":
    sys.exit(main(Path(__file__), __doc__.splitlines()[0], SECTIONS))
