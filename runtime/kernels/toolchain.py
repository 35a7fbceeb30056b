"""What is missing for compiling C++ on this machine, and one line that tells the user."""

import functools
import logging
import os
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch._inductor.config as inductor_config
from torch._inductor.cpp_builder import _get_python_related_args, get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

_logger = logging.getLogger("coxcompile")


@dataclass(frozen=True)
class Obstacle:
    """Why Inductor can compile nothing for the CPU, and what the user can install against it."""

    reason: str
    remedy: str


def inductor_obstacle() -> Obstacle | None:
    """What Inductor needs and does not find: a C++ compiler that starts, Python.h; None if neither.

    Asks Inductor's own search and compiles nothing. Must not judge a compiler that is there and
    fails: that error is Inductor's to raise.
    """
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):  # OSError: CXX names a file that cannot be executed
        searched = inductor_config.cpp.cxx
        names = searched if isinstance(searched, list | tuple) else (searched,)
        return Obstacle(
            f"no C++ compiler was found ({' or '.join(name for name in names if name)})",
            "Install g++ (Debian: apt-get install g++)",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor warns of a missing Python.h and goes on
        directories, _ = _get_python_related_args()
    for variable in ("CPATH", "CPLUS_INCLUDE_PATH"):  # where the compiler looks of its own accord
        directories += filter(None, os.environ.get(variable, "").split(os.pathsep))
    if not any((Path(directory) / "Python.h").exists() for directory in directories):
        return Obstacle("no Python.h was found", "Install it (Debian: apt-get install python3-dev)")
    return None


def report_missing(native: bool, obstacle: Obstacle | None) -> None:
    """Log what is missing as one line, once a process; nothing if nothing is missing.

    Args:
        native: the C++ kernels were built when the package was installed.
        obstacle: see :func:`inductor_obstacle`.
    """
    if obstacle is not None and native:
        _log_once(
            f"{obstacle.reason}, so Inductor compiles nothing: all but the experts runs operator "
            f"by operator, slower. {obstacle.remedy}."
        )
    elif obstacle is not None:
        _log_once(
            f"{obstacle.reason}, so Inductor compiles nothing and experts run on plain PyTorch "
            f"calls, slower. {obstacle.remedy} and reinstall coxcompile."
        )
    elif not native and platform.machine() not in ("x86_64", "AMD64"):
        _log_once("the C++ kernels are for x86-64, so experts run on plain PyTorch calls, slower.")
    elif not native:
        _log_once(
            "installed without its C++ kernels, so experts run on plain PyTorch calls, "
            "slower. Reinstall coxcompile: there is a C++ compiler now."
        )


# Not warnings.warn: that prints two lines, and is an error to whoever makes warnings errors.
@functools.cache
def _log_once(line: str) -> None:
    _logger.warning("coxcompile: %s", line)
