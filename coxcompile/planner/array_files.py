"""Arrays with a record beside them as one safetensors file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from coxcompile.planner.records import RecordError, from_builtins, to_builtins

Record = TypeVar("Record")
_KEY = "record"


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], record: Any) -> None:
    """Write the arrays, and the record (a dataclass) as JSON in the file's metadata.

    The file at ``path`` is replaced at once: an interruption leaves the old one or the new one.
    """
    partial = path.with_name(f"{path.name}.partial")
    metadata = {_KEY: msgspec.json.encode(to_builtins(record)).decode()}
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial, metadata
    )
    os.replace(partial, path)


def load_arrays(path: Path, kind: type[Record]) -> tuple[dict[str, np.ndarray], Record]:
    """The arrays of a file that :func:`save_arrays` wrote with a record of type ``kind``.

    Raises:
        RecordError: the file is missing or another kind of file; the message names it.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{path}: {error}") from None
    if text is None:
        raise RecordError(f"{path}: a safetensors file, but none that coxcompile wrote")
    try:
        values = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise RecordError(f"{path}: {error}") from None
    return arrays, from_builtins(kind, values, str(path))
