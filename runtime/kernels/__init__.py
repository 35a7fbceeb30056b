"""Expert kernels, one file per provider. ``load_cpu_kernels`` picks the CPU's."""

import importlib.util
import warnings

import torch

from coxcompile.runtime.kernels.plain import coalesced_experts as plain_coalesced_experts

__all__ = ["load_cpu_kernels", "plain_coalesced_experts"]


def load_cpu_kernels(library: torch.library.Library) -> str:
    """Register the CPU kernels of ``coxmoe`` operators and return its provider's name.

    "native" is the C++ extension. Without it (no C++ compiler at install) "plain" runs the experts
    as PyTorch calls, and says so in one warning.
    """
    native = importlib.util.find_spec("coxcompile._native")
    if native is not None and native.origin is not None:
        torch.ops.load_library(native.origin)
        return "native"
    warnings.warn(
        "coxcompile was installed without its C++ kernels: experts run on plain PyTorch calls, "
        "several times slower. Install g++ and reinstall coxcompile to build them.",
        RuntimeWarning,
        stacklevel=2,
    )
    library.impl("coalesced_experts", plain_coalesced_experts, "CPU")
    library.impl("streamed_linear", torch.nn.functional.linear, "CPU")
    return "plain"
