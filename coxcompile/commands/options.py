"""Options that several commands have, and their output as JSON."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from coxcompile.planner.records import to_builtins

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")]


def print_json(records: Sequence[object]) -> None:
    """A list with one object a record, fields named as in its class."""
    encoded = msgspec.json.encode([to_builtins(record) for record in records])
    print(msgspec.json.format(encoded, indent=2).decode())
