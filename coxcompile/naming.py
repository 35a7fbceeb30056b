"""Looking up named descriptions, with an error that helps."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

Described = TypeVar("Described")


class UnknownNameError(ValueError):
    """No description has this name; the message lists those there are and the nearest."""


def look_up(kind: str, name: str, known: Mapping[str, Described]) -> Described:
    """What ``known`` has under ``name``, whatever the case of its letters.

    Args:
        kind: what the names name, for the error ("model").
        name: the name asked for.
        known: descriptions by their lower-case names.

    Raises:
        UnknownNameError: there is no such name.
    """
    if name.lower() in known:
        return known[name.lower()]
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UnknownNameError(f"no {kind} {name!r}; there are {', '.join(known)}{hint}")
