"""In a process under the emulator: oneDNN is made to see AMX, and what was executed is counted."""

import ctypes
import os
from pathlib import Path

import torch

from tests.amx.cpuid_sites import NoSitesError, find_sites
from tests.amx.emulator import EMULATOR

# The members of amx::Event, in its order.
EVENTS = (
    *("ldtilecfg", "sttilecfg", "tilerelease", "tilezero", "tileloadd", "tileloaddt1"),
    *("tilestored", "tdpbf16ps", "tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud", "cpuid", "xgetbv"),
    "permission",
)
# oneDNN asks in functions of its own and of Xbyak, the assembler it carries. Others in the library
# (MKL, PyTorch) go on seeing the processor as it is.
_ONEDNN = ("4dnnl", "5Xbyak")


def activate() -> int:
    """Make PyTorch's oneDNN see a processor with AMX; returns how many instructions were changed.

    Before the process's first product: oneDNN asks once.

    Raises:
        NoSitesError: this build of PyTorch does not show where its oneDNN asks.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        sites = find_sites(library, _ONEDNN)
    except NoSitesError as error:
        raise NoSitesError(f"torch {torch.__version__}: {error}") from None
    emulator, base = _emulator(), _load_address(library)
    for site in sites:
        if not emulator.amx_intercept(ctypes.c_void_p(base + site)):
            raise RuntimeError(f"{library}: the instruction at {site:#x} cannot be changed")
    return len(sites)


def counters() -> dict[str, int]:
    """How often each AMX instruction, and what asks for AMX, was executed so far.

    Empty in a process without the emulator.
    """
    if EMULATOR not in os.environ:
        return {}
    values = (ctypes.c_uint64 * len(EVENTS))()
    _emulator().amx_read_counters(values)
    return dict(zip(EVENTS, values, strict=True))


def _emulator() -> ctypes.CDLL:
    # Already loaded: this finds it.
    return ctypes.CDLL(os.environ[EMULATOR])


def _load_address(library: Path) -> int:
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, offset, *_, path = line.split(maxsplit=5) if "/" in line else [""] * 5
        if path == str(library.resolve()) and int(offset, 16) == 0:
            return int(addresses.split("-")[0], 16)
    raise RuntimeError(f"{library} is not loaded")
