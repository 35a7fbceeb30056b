"""An accelerator for tests: host memory and threads that behave as a GPU's memory and streams.

``load()`` registers the PyTorch device "emulated". See docs/emulated-accelerator.md.
"""

from coxcompile.runtime.emulated.extension import import_extension, load
from coxcompile.runtime.emulated.operations import (
    as_host,
    borrow,
    copy_rows,
    empty_cache,
    enqueue,
    host_function,
    labelled,
    run_on_host,
    take_error,
)
from coxcompile.runtime.emulated.records import (
    Span,
    Statistics,
    reset_statistics,
    start_timeline,
    statistics,
    take_timeline,
)
from coxcompile.runtime.emulated.settings import Delays, configure, delay_label

__all__ = [
    "Delays",
    "Span",
    "Statistics",
    "as_host",
    "borrow",
    "configure",
    "copy_rows",
    "delay_label",
    "empty_cache",
    "enqueue",
    "host_function",
    "labelled",
    "load",
    "register_fake_cuda_guard",
    "reset_statistics",
    "run_on_host",
    "start_timeline",
    "statistics",
    "take_error",
    "take_timeline",
]


def register_fake_cuda_guard() -> bool:
    """Let a CPU-only PyTorch trace fake tensors on "cuda"; registers nothing else.

    Returns:
        Whether it was registered now; False where PyTorch has a CUDA guard already.
    """
    return import_extension().register_fake_cuda_guard()
