"""Stands in for the CUDA libraries that PyTorch 2.8 of PyPI links, so that it loads without them.

    python stub_libraries.py site-packages/torch/lib

Writes into that folder, where its libraries look for others, one library for each of CUDA's that
they need: functions of the names and versions that they ask for. They do nothing and return 0,
success, but for the one that counts devices: there are none. Needs gcc and binutils.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

CUDA_LIBRARY = re.compile(r"lib(?:cu|nccl|nvrtc)\w*\.so\.\d+")
CUDA_FUNCTION = re.compile(r"(?:cu|nccl|nvrtc)\w+")
NO_DEVICE_CODE = {"cudaGetDeviceCount": 100}


def write_stubs(folder: Path) -> list[str]:
    """Write the libraries that those in ``folder`` need, and return their names.

    Raises:
        RuntimeError: they need none, so this is another build of PyTorch.
    """
    needed: set[str] = set()
    functions: dict[str, set[str]] = defaultdict(set)
    for library in sorted(folder.glob("*.so")):
        needed |= set(CUDA_LIBRARY.findall(_output("readelf", "--dynamic", str(library))))
        for name, version in _undefined(library):
            functions[version].add(name)
    if not needed:
        raise RuntimeError(f"no library in {folder} needs CUDA; use PyPI's torch==2.8.0 for Linux")
    # A name that asks for no version may lie in any of them.
    first = min(needed)
    for library_name in sorted(needed):
        unversioned = functions[""] if library_name == first else set()
        _write_stub(folder / library_name, functions[library_name], unversioned)
    return sorted(needed)


def _undefined(library: Path) -> list[tuple[str, str]]:
    """(function, version) of what the library takes from CUDA's; the version may be empty."""
    found = []
    for line in _output("readelf", "--wide", "--dyn-syms", str(library)).splitlines():
        columns = line.split()
        if len(columns) < 8 or columns[6] != "UND":
            continue
        name, _, version = columns[7].partition("@")
        if CUDA_LIBRARY.fullmatch(version) or (not version and CUDA_FUNCTION.fullmatch(name)):
            found.append((name, version))
    return found


def _write_stub(path: Path, versioned: set[str], unversioned: set[str]) -> None:
    names = sorted(versioned | unversioned)
    codes = {name: NO_DEVICE_CODE.get(name, 0) for name in names}
    source = "".join(f"int {name}(void) {{ return {code}; }}\n" for name, code in codes.items())
    with tempfile.TemporaryDirectory() as folder:
        code, versions = Path(folder, "stub.c"), Path(folder, "versions")
        code.write_text(source)
        command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{path.name}"]
        if versioned:
            exported = " ".join(f"{name};" for name in sorted(versioned))
            versions.write_text(f"{path.name} {{ global: {exported} }};\n")
            command.append(f"-Wl,--version-script={versions}")
        subprocess.run([*command, "-o", str(path), str(code)], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    print("stubs:", *write_stubs(Path(sys.argv[1])))
