"""Check everything that runs on a GPU, on the one at hand, in under eight minutes.

Numerics of every variant of the expert kernels and every configuration of the table against
float64, the operator against grouped_mm, determinism, all families of models and the tests of
co-execution on cuda, and compute-sanitizer if there is one. Without a GPU it says so and ends.

    python benchmarks/gpu_check.py --json build/gpu_check.json --markdown build/gpu_check.md
"""

import sys
from pathlib import Path

from gpu_cases import Section
from gpu_check_configurations import configuration_cases
from gpu_check_kernels import kernel_cases
from gpu_check_layer import layer_cases
from gpu_check_models import coexecution_cases, family_cases
from gpu_check_sanitizer import sanitizer_cases
from gpu_main import main

WORKERS = 6
"""Processes that compile and check side by side; nothing is timed."""

# The seconds add up to 405; starting workers, and one last case of each, come on top.
SECTIONS = (
    Section("kernels", "Kernels", kernel_cases, 90, 60, WORKERS),
    Section("layer", "Layers", layer_cases, 30, 60, 3),
    Section("configurations", "Configurations of the table", configuration_cases, 75, 60, WORKERS),
    Section("families", "Families of models", family_cases, 90, 90, WORKERS),
    Section("coexecution", "Co-execution", coexecution_cases, 70, 90, WORKERS),
    Section("sanitizer", "compute-sanitizer", sanitizer_cases, 50, 90, 2),
)

if __name__ == "__main__":
    sys.exit(main(Path(__file__), __doc__.splitlines()[0], SECTIONS))
