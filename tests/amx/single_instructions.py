"""A process that executes a few AMX instructions of its own.

    python -m tests.amx.single_instructions zero|load ask|do-not-ask

``zero`` configures a tile of 1 KiB and zeroes it; ``load`` loads it from a heap buffer that is a
byte too short. ``ask`` asks Linux for permission first.
"""

import ctypes
import faulthandler
import mmap
import sys

from coxcompile.processor import request_tile_permission

ROWS, ROW_BYTES = 16, 64
CONFIGURE = bytes.fromhex("c4e2784907")  # ldtilecfg [rdi]
ZERO = bytes.fromhex("c4e27b49c0")  # tilezero tmm0
LOAD = bytes.fromhex("c4e27b4b0416")  # tileloadd tmm0, [rsi + rdx]
RELEASE = bytes.fromhex("c4e27849c0")  # tilerelease
RETURN = b"\xc3"


def main(what: str, permission: str) -> None:
    """Execute them."""
    faulthandler.enable()
    if permission == "ask" and not request_tile_permission():
        raise RuntimeError("permission was refused")
    instruction = {"zero": ZERO, "load": LOAD}[what]
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(CONFIGURE + instruction + RELEASE + RETURN)
    configuration = (ctypes.c_uint8 * 64)()
    configuration[0], configuration[16], configuration[48] = 1, ROW_BYTES, ROWS
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    short = libc.malloc(ctypes.c_size_t(ROWS * ROW_BYTES - 1))
    arguments = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    function = ctypes.CFUNCTYPE(None, *arguments)(
        ctypes.addressof(ctypes.c_char.from_buffer(memory))
    )
    function(ctypes.addressof(configuration), short, ROW_BYTES)


if __name__ == "__main__":
    main(*sys.argv[1:])
