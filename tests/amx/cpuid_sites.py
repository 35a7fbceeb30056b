"""Where a library's functions ask the processor what it can: CPUID and XGETBV instructions."""

import mmap
import re
import subprocess
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_INSTRUCTIONS = (b"\x0f\xa2", b"\x0f\x01\xd0")
_MNEMONICS = re.compile(r"^\s*([0-9a-f]+):\s+(?:cpuid|xgetbv)\b", re.MULTILINE)
_SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("address", "<u8"),
        ("size", "<u8"),
    ]
)
# Between functions in the file that is disassembled: a disassembler that lost its step at the end
# of one finds it again.
_PADDING = b"\x90" * 16


class NoSitesError(RuntimeError):
    """The library cannot be searched, or has none; the message says which and why."""


@dataclass(frozen=True)
class _Section:
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class _Function:
    address: int
    code: bytes
    candidates: tuple[int, ...]


def find_sites(library: Path, namespaces: Sequence[str]) -> list[int]:
    """Addresses, relative to where the library is loaded, of the instructions in its functions.

    Args:
        library: an ELF file for x86-64 with its symbol table.
        namespaces: functions count whose mangled names hold one of these, as ``"4dnnl"``.

    Bytes that only look like the instruction are told apart by disassembling each function that
    holds some. Takes binutils' objdump, and a second or two for libtorch_cpu.

    Raises:
        NoSitesError: there is no symbol table, or no such instruction in such a function.
    """
    wanted = [name.encode() for name in namespaces]
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as image:
        sections = _sections(image)
        if ".symtab" not in sections:
            raise NoSitesError(f"{library} has no symbol table: functions cannot be told apart")
        functions = list(_functions(image, sections, wanted))
    sites = _disassembled(functions)
    if not sites:
        raise NoSitesError(f"{library} has no CPUID instruction in functions of {namespaces}")
    return sites


def _sections(image: mmap.mmap) -> dict[str, _Section]:
    headers_at = int.from_bytes(image[0x28:0x30], "little")
    size, count, names_index = np.frombuffer(image[0x3A:0x40], "<u2").tolist()
    headers = [
        np.frombuffer(image[at : at + size], np.dtype("<u4")).tolist()
        for at in range(headers_at, headers_at + count * size, size)
    ]

    def section(header: list[int]) -> _Section:
        address, offset, length = (header[i] | header[i + 1] << 32 for i in (4, 6, 8))
        return _Section(address, offset, length, header[10])

    names = section(headers[names_index])
    return {_text(image, names.offset + header[0]).decode(): section(header) for header in headers}


def _text(image: mmap.mmap, begin: int) -> bytes:
    return image[begin : image.find(b"\0", begin)]


def _functions(
    image: mmap.mmap, sections: dict[str, _Section], wanted: Sequence[bytes]
) -> Iterator[_Function]:
    """The functions that hold the bytes of an instruction."""
    text, table = sections[".text"], sections[".symtab"]
    # The table's link is the index of its names' section, which is .strtab.
    names = sections[".strtab"]
    symbols = np.frombuffer(image[table.offset : table.offset + table.size], _SYMBOL)
    symbols = symbols[(symbols["section"] != 0) & (symbols["size"] > 0)]
    symbols = symbols[np.argsort(symbols["address"], kind="stable")]
    shift = text.address - text.offset
    found: dict[int, set[int]] = {}
    for offset in _occurrences(image, text):
        index = _symbol_at(symbols, offset + shift)
        if index is not None:
            found.setdefault(index, set()).add(offset + shift)
    for index, candidates in found.items():
        name = _text(image, names.offset + int(symbols["name"][index]))
        if any(part in name for part in wanted):
            address, size = int(symbols["address"][index]), int(symbols["size"][index])
            code = image[address - shift : address - shift + size]
            yield _Function(address, code, tuple(sorted(candidates)))


def _occurrences(image: mmap.mmap, text: _Section) -> Iterator[int]:
    end = text.offset + text.size
    for instruction in _INSTRUCTIONS:
        at = image.find(instruction, text.offset, end)
        while at >= 0:
            yield at
            at = image.find(instruction, at + 1, end)


def _symbol_at(symbols: NDArray[np.void], address: int) -> int | None:
    index = bisect_right(symbols["address"], address) - 1
    if index < 0 or address >= symbols["address"][index] + symbols["size"][index]:
        return None
    return index


def _disassembled(functions: Sequence[_Function]) -> list[int]:
    """Those candidates that are instructions."""
    address_of: dict[int, int] = {}
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        for function in functions:
            begin = file.tell()
            for candidate in function.candidates:
                address_of[begin + candidate - function.address] = candidate
            file.write(function.code + _PADDING)
        file.flush()
        command = ["objdump", "--disassemble-all", "--target=binary", "--architecture=i386:x86-64"]
        listing = subprocess.run(
            [*command, "--no-show-raw-insn", file.name], capture_output=True, text=True, check=True
        ).stdout
    positions = (int(match[1], 16) for match in _MNEMONICS.finditer(listing))
    return sorted(address_of[position] for position in positions if position in address_of)
