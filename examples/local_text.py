"""Text that any machine with this project's .venv has, in domains, split into train and held-out.

Python's library, what its packages bring along (C headers, licences, JSON, tables, web pages) and
what Debian installs (shell, Perl, manual pages). Nothing is downloaded. A token is a byte; NUL,
which no text contains, ends a document.
"""

import gzip
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

import torch

Split = Literal["train", "held-out"]

END_OF_DOCUMENT = 0
HELD_OUT_SHARE = 0.2
# Most bytes of one file, so that generated giants do not make up a domain; of a domain's split;
# and the fewest without which a domain is left out.
FILE_BYTES = 128 << 10
SPLIT_BYTES: dict[Split, int] = {"train": 4 << 20, "held-out": 1 << 20}
FEWEST_BYTES: dict[Split, int] = {"train": 64 << 10, "held-out": 16 << 10}

_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
_PACKAGES = Path(sysconfig.get_paths()["purelib"])
_SHARE = Path("/usr/share")
# site-packages may lie inside the library's folder.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class _Source:
    """Files below ``root`` whose name ends or starts with one of the given strings."""

    root: Path
    endings: tuple[str, ...] = ()
    beginnings: tuple[str, ...] = ()

    def files(self) -> Iterator[Path]:
        for folder, names in _walk(self.root):
            for name in names:
                path = folder / name
                if (
                    name.endswith(self.endings) or name.startswith(self.beginnings)
                ) and path.is_file():
                    yield path


@dataclass(frozen=True)
class _Domain:
    files: dict[Split, list[Path]]
    texts: dict[Split, bytearray]


_SOURCES: dict[str, list[_Source]] = {
    "python": [_Source(_LIBRARY, (".py",))],
    "type stubs": [_Source(_PACKAGES, (".pyi",))],
    "c headers": [
        _Source(_PACKAGES / "torch/include", (".h",)),
        _Source(Path("/usr/include"), (".h",)),
    ],
    "licences": [
        _Source(_PACKAGES, beginnings=("LICENSE", "LICENCE", "COPYING")),
        _Source(_SHARE / "common-licenses", beginnings=("",)),
        _Source(_SHARE / "doc", ("copyright",)),
    ],
    "documentation": [_Source(_PACKAGES, (".md", ".rst", "METADATA"))],
    "json": [_Source(_PACKAGES, (".json",)), _Source(_SHARE, (".json",))],
    "tables": [_Source(_PACKAGES, (".csv", ".dat"))],
    "web": [_Source(root, (".html", ".css", ".js", ".svg")) for root in (_PACKAGES, _SHARE)],
    "shell": [_Source(Path("/var/lib/dpkg/info"), (".postinst", ".preinst", ".postrm", ".prerm"))],
    "perl": [
        _Source(root, (".pm",)) for root in (_SHARE / "perl", _SHARE / "perl5", Path("/usr/lib"))
    ],
    "manual pages": [_Source(_SHARE / "man", (".gz",))],
}


def domains() -> dict[str, dict[Split, list[Path]]]:
    """Files of every domain that has enough text here, by split.

    A file's split is decided by a hash of its path below the domain's folder, so it is the same on
    every machine; the hash orders the files too. Domains left out are named on stderr, once.
    """
    return {
        name: {split: list(files) for split, files in domain.files.items()}
        for name, domain in _domains().items()
    }


def read(domain: str, split: Split) -> torch.Tensor:
    """The split's documents, each followed by END_OF_DOCUMENT: uint8 [bytes], at most SPLIT_BYTES.

    A document that is a copy of another, as licences are, is read once, and never held out when it
    is trained on. Raises ValueError for an unknown domain or split.
    """
    if domain not in _domains():
        raise ValueError(
            f"domain is {domain!r}; this machine has text for: {', '.join(_domains())}"
        )
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; give one of: {', '.join(get_args(Split))}")
    return torch.frombuffer(_domains()[domain].texts[split], dtype=torch.uint8)


def sample(
    domain: str, split: Split, sequences: int, length: int, generator: torch.Generator
) -> torch.Tensor:
    """Windows of the split's text at random places: token ids, int64 [sequences, length].

    A window may begin in the middle of a document and run into the next. Raises ValueError for an
    unknown domain or split, no sequences, or a length outside 1 to the bytes there are.
    """
    text = read(domain, split)
    if sequences < 1:
        raise ValueError(f"sequences is {sequences}; give 1 or more")
    if not 1 <= length <= len(text):
        raise ValueError(f"length is {length}; {domain}, {split}, allows 1 to {len(text)}")
    windows = text.unfold(0, length, 1)
    starts = torch.randint(0, len(windows), (sequences,), generator=generator)
    return windows[starts].long()


@cache
def _walk(root: Path) -> list[tuple[Path, list[str]]]:
    folders = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in _SKIPPED_FOLDERS]
        folders.append((Path(folder), names))
    return folders


@cache
def _domains() -> dict[str, _Domain]:
    found = {}
    for name, sources in _SOURCES.items():
        domain = _collect(sources)
        if all(len(domain.texts[split]) >= fewest for split, fewest in FEWEST_BYTES.items()):
            found[name] = domain
        else:
            print(f"{name}: too little text on this machine, left out", file=sys.stderr)
    return found


def _collect(sources: list[_Source]) -> _Domain:
    hashed = sorted(
        (sha256(str(path.relative_to(source.root)).encode()).digest(), path)
        for source in sources
        for path in source.files()
    )
    files: dict[Split, list[Path]] = {"train": [], "held-out": []}
    for digest, path in hashed:
        files["held-out" if digest[0] < 256 * HELD_OUT_SHARE else "train"].append(path)
    seen: set[bytes] = set()
    return _Domain(files, {split: _text(files[split], SPLIT_BYTES[split], seen) for split in files})


def _text(files: list[Path], most_bytes: int, seen: set[bytes]) -> bytearray:
    documents = bytearray()
    for path in files:
        if len(documents) >= most_bytes:
            break
        document = _document(path)
        digest = sha256(document).digest()
        if END_OF_DOCUMENT not in document and digest not in seen:
            seen.add(digest)
            documents += document + bytes([END_OF_DOCUMENT])
    return documents[:most_bytes]


def _document(path: Path) -> bytes:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return file.read(FILE_BYTES)
