"""What the operating system says of the processor and its memory: instruction sets, AMX, CPUs,
NUMA nodes, large pages.
"""

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
SYS = Path("/sys")

_ARCH_PRCTL = 158  # x86-64's number of the system call
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18
_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")


@dataclass(frozen=True, kw_only=True)
class ProcessorFacts:
    """What this process may use of the machine.

    ``instruction_sets`` are those that matter to products, as Linux names them. ``usable_cpus`` are
    hardware threads, ``usable_cores`` the cores they are on; ``quota_cpus`` is what a container's
    limit on time comes to, None without one. ``large_pages`` is when programs get pages of
    megabytes: "always", on request ("madvise") or "never".
    """

    instruction_sets: tuple[str, ...]
    amx_permitted: bool
    usable_cpus: int
    usable_cores: int
    quota_cpus: float | None
    numa_nodes: int
    large_pages: str

    @property
    def has_amx(self) -> bool:
        """Whether the processor multiplies tiles of bfloat16."""
        return "amx_bf16" in self.instruction_sets


def this_processor() -> ProcessorFacts:
    """Read from /proc and /sys; what they do not say is taken to be as simple as can be.

    Where there is AMX, asks the kernel to let this process use it, as oneDNN will.
    """
    cpus = sorted(os.sched_getaffinity(0))
    sets = instruction_sets()
    return ProcessorFacts(
        instruction_sets=sets,
        amx_permitted="amx_tile" in sets and request_tile_permission(),
        usable_cpus=len(cpus),
        usable_cores=len({_siblings(cpu) for cpu in cpus}),
        quota_cpus=quota_cpus(),
        numa_nodes=max(1, len(list((SYS / "devices/system/node").glob("node[0-9]*")))),
        large_pages=_large_pages(),
    )


def instruction_sets() -> tuple[str, ...]:
    """Those of interest among the flags of the first CPU in /proc/cpuinfo."""
    match = re.search(r"^flags\s*:(.*)$", _read(PROC / "cpuinfo"), re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    return tuple(name for name in _SETS if name in flags)


def request_tile_permission() -> bool:
    """Ask Linux to let this process keep data in AMX tiles; whether it does (from 5.16 on).

    A process that has it keeps it, and pays 8 KiB more for each signal it handles.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


def quota_cpus() -> float | None:
    """CPUs' worth of time that a container's limit leaves (cgroup v2's cpu.max, v1's quota)."""
    quota, _, period = _read(SYS / "fs/cgroup/cpu.max").partition(" ")
    if not period:
        quota = _read(SYS / "fs/cgroup/cpu/cpu.cfs_quota_us")
        period = _read(SYS / "fs/cgroup/cpu/cpu.cfs_period_us")
    if not quota.strip().isdecimal() or not period.strip().isdecimal():  # "max", "-1", no file
        return None
    return int(quota) / int(period)


def _large_pages() -> str:
    """The one in brackets of "always [madvise] never"."""
    found = re.search(r"\[(\w+)\]", _read(SYS / "kernel/mm/transparent_hugepage/enabled"))
    return found[1] if found else "never"


def _siblings(cpu: int) -> str:
    """The hardware threads of the CPU's core; its own number where the kernel does not say."""
    topology = SYS / f"devices/system/cpu/cpu{cpu}/topology"
    return _read(topology / "thread_siblings_list").strip() or str(cpu)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
