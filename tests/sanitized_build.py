"""The CPU kernels compiled with AddressSanitizer, kept in build/sanitized by their sources."""

import hashlib
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "sanitized"
# As setup.py's, but for the optimisation: every access of the source's is to be seen.
_OPTIONS = (
    *("-O1", "-g1", "-std=c++20", "-fPIC", "-fopenmp", "-fno-math-errno", "-w"),
    *("-fsanitize=address", "-fno-omit-frame-pointer", "-DTORCH_EXTENSION_NAME=_native"),
)


def library() -> Path:
    """The shared object; takes minutes where nothing is built yet."""
    sources = sorted((ROOT / "csrc").glob("*.cpp"))
    headers = b"".join(path.read_bytes() for path in sorted((ROOT / "csrc").glob("*.h")))
    BUILD.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(lambda source: _compiled(source, headers), sources))
    built = BUILD / f"native-{_digest(*(str(path).encode() for path in objects))}.so"
    if not built.exists():
        found = [f"-L{path}" for path in library_paths()]
        libraries = ["-lc10", "-ltorch", "-ltorch_cpu"]
        _run(*_OPTIONS, "-shared", *objects, *found, *libraries, "-o", built)
    return built


def runtime() -> str | None:
    """What to preload: the sanitizer's library; None if the compiler has none.

    And libstdc++, which Python has not loaded when the sanitizer looks for what throws exceptions.
    """
    paths = [Path(_output(f"-print-file-name={name}")) for name in ("libasan.so", "libstdc++.so.6")]
    return " ".join(map(str, paths)) if all(path.is_absolute() for path in paths) else None


def _compiled(source: Path, headers: bytes) -> Path:
    digest = _digest(source.read_bytes(), headers, torch.__version__.encode())
    built = BUILD / f"{source.stem}-{digest}.o"
    if not built.exists():
        folders = [*include_paths(), sysconfig.get_path("include")]
        partial = built.with_suffix(f".{os.getpid()}")
        _run(*_OPTIONS, *(f"-I{folder}" for folder in folders), "-c", source, "-o", partial)
        partial.rename(built)
    return built


def _digest(*contents: bytes) -> str:
    return hashlib.sha256(b"\0".join((*contents, " ".join(_OPTIONS).encode()))).hexdigest()[:16]


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _output(argument: str) -> str:
    command = [_compiler(), argument]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _run(*arguments: str | Path) -> None:
    subprocess.run([_compiler(), *map(str, arguments)], check=True)


if __name__ == "__main__":
    print(library(), file=sys.stdout)
