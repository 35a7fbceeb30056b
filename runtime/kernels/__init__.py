"""Expert kernels, one file per provider. ``load_cpu_kernels`` picks the CPU's."""

import importlib.util

import torch

from coxcompile.runtime.kernels.count_choices import count_choices_ as plain_count_choices_
from coxcompile.runtime.kernels.plain import coalesced_experts as plain_coalesced_experts
from coxcompile.runtime.kernels.toolchain import inductor_obstacle, report_missing

__all__ = [
    "inductor_obstacle",
    "load_cpu_kernels",
    "plain_coalesced_experts",
    "plain_count_choices_",
    "report_missing",
]


def load_cpu_kernels(library: torch.library.Library) -> str:
    """Register the CPU kernels of ``coxmoe`` operators and return its provider's name.

    "native" is the C++ extension. Without it (no C++ compiler at install) "plain" runs the experts
    as PyTorch calls, and says so once.
    """
    native = importlib.util.find_spec("coxcompile._native")
    if native is not None and native.origin is not None:
        torch.ops.load_library(native.origin)
        return "native"
    report_missing(native=False, obstacle=inductor_obstacle())
    library.impl("coalesced_experts", plain_coalesced_experts, "CPU")
    library.impl("streamed_linear", torch.nn.functional.linear, "CPU")
    return "plain"
