"""Expert kernels, one file per provider. ``load_cpu_kernels`` picks the CPU's."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from coxcompile.runtime.kernels.count_choices import count_choices_ as plain_count_choices_
from coxcompile.runtime.kernels.grouped import experts_subset_ as grouped_experts_subset_
from coxcompile.runtime.kernels.ipex import ipex_experts
from coxcompile.runtime.kernels.ipex_installation import ipex_obstacle, load_ipex
from coxcompile.runtime.kernels.plain import coalesced_experts as plain_coalesced_experts
from coxcompile.runtime.kernels.plain import (
    coalesced_separate_experts as plain_coalesced_separate_experts,
)
from coxcompile.runtime.kernels.plain import experts_subset_ as plain_experts_subset_
from coxcompile.runtime.kernels.rows import PackedRows, add_rows_, pack_rows
from coxcompile.runtime.kernels.toolchain import inductor_obstacle, report_missing

__all__ = [
    "PackedRows",
    "add_rows_",
    "grouped_experts_subset_",
    "inductor_obstacle",
    "ipex_experts",
    "ipex_obstacle",
    "load_cpu_kernels",
    "load_ipex",
    "pack_rows",
    "plain_coalesced_experts",
    "plain_coalesced_separate_experts",
    "plain_count_choices_",
    "plain_experts_subset_",
    "report_missing",
    "triton_kernel",
]


def triton_kernel(name: str) -> Callable[..., Any]:
    """The function of that name in ``gpu/experts.py``, which is imported when it is first called.

    Triton takes a moment to import, and not everyone has it.
    """

    def call(*arguments: Any, **options: Any) -> Any:
        experts = importlib.import_module("coxcompile.runtime.kernels.gpu.experts")
        return getattr(experts, name)(*arguments, **options)

    return call


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
    library.impl("coalesced_experts.separate", plain_coalesced_separate_experts, "CPU")
    library.impl("experts_subset_", plain_experts_subset_, "CPU")
    library.impl("streamed_linear", torch.nn.functional.linear, "CPU")
    return "plain"
