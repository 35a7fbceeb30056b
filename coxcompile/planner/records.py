"""Descriptions as files: any of the planner's dataclasses to JSON or TOML and back, checked."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import msgspec

Record = TypeVar("Record")


class RecordError(ValueError):
    """A file or dict that is not the record it should be; the message names the field."""


def to_builtins(record: Any) -> dict[str, Any]:
    """The record as dicts, lists, strings and numbers; fields that are None are left out."""
    return _without_none(msgspec.to_builtins(record))  # type: ignore[no-any-return]


def from_builtins(kind: type[Record], values: object, origin: str) -> Record:
    """The record of type ``kind`` that ``values`` (from ``origin``, for messages) describes.

    Raises:
        RecordError: a field is missing, unknown, of another type or out of its bounds.
    """
    if isinstance(values, dict):
        known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
        if unknown := sorted(set(values) - set(known)):
            raise RecordError(
                f"{origin}: unknown field {unknown[0]!r}; a {kind.__name__} has {', '.join(known)}"
            )
    try:
        return msgspec.convert(values, kind, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise RecordError(f"{origin}: {error}") from None


def save(record: Any, path: Path) -> None:
    """Write the record to ``path``, as its suffix says: .json or .toml."""
    if path.suffix not in (".json", ".toml"):
        raise RecordError(f"{path}: the suffix must be .json or .toml")
    values = to_builtins(record)
    path.write_bytes(_json(values) if path.suffix == ".json" else msgspec.toml.encode(values))


def load(kind: type[Record], path: Path) -> Record:
    """The record of type ``kind`` in a .json or .toml file."""
    decode = {".json": msgspec.json.decode, ".toml": msgspec.toml.decode}.get(path.suffix)
    if decode is None:
        raise RecordError(f"{path}: the suffix must be .json or .toml")
    try:
        values = decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise RecordError(f"{path}: {error}") from None
    return from_builtins(kind, values, str(path))


def _json(values: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(values), indent=2) + b"\n"


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
