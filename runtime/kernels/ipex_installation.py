"""Whether Intel Extension for PyTorch is there and fits this PyTorch, and loading its operators."""

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from coxcompile.runtime.kernels.toolchain import Obstacle

PACKAGE = "intel_extension_for_pytorch"
FITTING_VERSION = "2.8"
"""Of the extension, whose operators have other arguments before, and so of PyTorch: it links it."""
_FITTING_LEVELS = ("avx512_bf16", "amx", "avx512_fp16")


def ipex_obstacle() -> Obstacle | None:
    """Why the extension's fused experts cannot run here, and what to do; None if they can.

    Reads what is installed and imports nothing: beside another PyTorch that fails.
    """
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        installed = None
    if not (_fits(torch.__version__) and installed is not None and _fits(installed)):
        found = f"{PACKAGE} {installed}" if installed is not None else f"no {PACKAGE}"
        return Obstacle(
            f"it takes torch {FITTING_VERSION} and {PACKAGE} {FITTING_VERSION}, but here are "
            f"torch {torch.__version__} and {found}",
            f"install both at {FITTING_VERSION} in an environment of their own (docs/options.md)",
        )
    if not torch.cpu._is_avx512_bf16_supported():
        return Obstacle(
            "its kernels take AVX512-BF16, which this processor lacks",
            "run on one that has it, as Intel's since Cooper Lake and AMD's since Zen 4 do",
        )
    limit = os.environ.get("ATEN_CPU_CAPABILITY", _FITTING_LEVELS[0])
    if limit not in _FITTING_LEVELS:
        return Obstacle(
            f"its kernels take AVX512-BF16, but ATEN_CPU_CAPABILITY={limit} keeps them below",
            "unset that variable",
        )
    return None


def load_ipex() -> None:
    """Load the extension's operators, ``torch.ops.torch_ipex``; a second time does nothing.

    Must be called only where :func:`ipex_obstacle` is None. The Python package is not imported: it
    cannot be beside transformers 5, and it changes PyTorch further.
    """
    package = find_spec(PACKAGE)
    assert package is not None
    assert package.origin is not None
    torch.ops.load_library(Path(package.origin).parent / "lib" / "libintel-ext-pt-cpu.so")


def _fits(installed: str) -> bool:
    return installed.split(".")[:2] == FITTING_VERSION.split(".")
