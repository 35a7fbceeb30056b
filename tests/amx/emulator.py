"""Building the emulator, and the environment in which a process runs under it."""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "amx"
EMULATOR = "COXMOE_AMX_EMULATOR"
"""The environment variable that says where the emulator is, to a process that has it loaded."""

_NEEDED = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx_vnni"}
_OPTIONS = (
    *("-std=c++20", "-O2", "-march=x86-64-v4", "-ffp-contract=off", "-fPIC", "-shared"),
    *("-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
)


@functools.cache
def obstacle() -> str | None:
    """Why AMX cannot be emulated here; None if it can.

    oneDNN's AMX kernels use AVX512-BF16 and AVX-VNNI beside AMX, and these are not emulated.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"AMX is emulated on x86-64 Linux, and this is {platform.machine()}"
    flags = _processor_flags()
    if "amx_tile" in flags:
        return "this processor has AMX, so that nothing traps: test_ops.py has run on it"
    if missing := _NEEDED - flags:
        return f"oneDNN's AMX kernels need {', '.join(sorted(missing))} too, which is not emulated"
    for program in (_compiler(), "objdump"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    return None


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with the emulator loaded, and ``variables`` on top.

    Alone it changes nothing but that AMX instructions are executed: that anything believes in AMX
    takes :func:`tests.amx.activation.activate` too.
    """
    preloaded = filter(None, (str(library()), os.environ.get("LD_PRELOAD")))
    loaded = {"LD_PRELOAD": " ".join(preloaded), EMULATOR: str(library())}
    return {**os.environ, **loaded, **variables}


def skip_unless_sites_were_found(finished: subprocess.CompletedProcess[str]) -> None:
    """Skip the test, naming PyTorch's version, if the process could not make oneDNN see AMX."""
    if "NoSitesError" in finished.stderr:
        pytest.skip(finished.stderr.strip().splitlines()[-1])


@functools.cache
def library() -> Path:
    """The shared object, compiled into build/amx where its sources changed."""
    sources = sorted(HERE.glob("*.cpp"))
    content = b"".join(path.read_bytes() for path in (*sources, *sorted(HERE.glob("*.h"))))
    command = [_compiler(), *_OPTIONS, *map(str, sources), "-ldl"]
    digest = hashlib.sha256(content + " ".join(command).encode()).hexdigest()[:16]
    path = BUILD / f"emulator-{digest}.so"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        # Renamed when it is whole: several test processes may build at once.
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            built = Path(folder) / path.name
            subprocess.run([*command, "-o", str(built)], check=True)
            built.rename(path)
    return path


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _processor_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), ":")
    return set(flags.split(":", 1)[1].split())
