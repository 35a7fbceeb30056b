"""Which values an option accepts, and in which words an error says so."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from coxcompile.hardware import HardwareSpec
from coxcompile.naming import look_up
from coxcompile.planner.activation_map import ActivationMap
from coxcompile.planner.plan import Plan
from coxcompile.planner.records import load
from coxcompile.runtime.choice_counts import ChoiceCounts
from coxcompile.runtime.session import Session


@dataclass(frozen=True)
class Check:
    """Which values an option accepts.

    ``allowed`` says so in words that fit after "allowed:". ``accept`` returns the value to store
    and raises ValueError for a value that is not allowed, with the reason where ``allowed`` alone
    would leave the user guessing. ``choices`` are the strings to suggest the nearest of.
    """

    allowed: str
    accept: Callable[[object], object]
    choices: tuple[str, ...] = ()


def one_of(*choices: str) -> Check:
    """Accept one of the given strings."""

    def accept(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError
        return value

    return Check(" or ".join(f'"{choice}"' for choice in choices), accept, choices)


def flag() -> Check:
    """Accept True or False, and nothing that merely behaves like them."""

    def accept(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Check("True or False", accept)


def share() -> Check:
    """Accept a number from 0 to 1."""

    def accept(value: object) -> float:
        # bool is a subclass of int, but True is no quantity.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError
        return float(value)

    return Check("a number from 0 to 1", accept)


def directory() -> Check:
    """Accept a path that is a directory or can become one, or None."""

    def accept(value: object) -> Path | None:
        if value is None:
            return None
        path = Path(os.path.expanduser(_text(value)))
        nearest = next((place for place in (path, *path.parents) if os.path.lexists(place)), None)
        if nearest is not None and not os.path.isdir(nearest):
            raise ValueError(f'"{nearest}" is not a directory')
        return path

    return Check("the path of a directory (str or os.PathLike), or None", accept)


def counters() -> Check:
    """Accept ChoiceCounts, or None."""

    def accept(value: object) -> ChoiceCounts | None:
        if value is not None and not isinstance(value, ChoiceCounts):
            raise ValueError
        return value

    return Check("a coxcompile.ChoiceCounts, or None", accept)


def session() -> Check:
    """Accept a Session, or None."""

    def accept(value: object) -> Session | None:
        if value is not None and not isinstance(value, Session):
            raise ValueError
        return value

    return Check("a coxcompile.Session, or None", accept)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def size() -> Check:
    """Accept a number of bytes, as a number or as text with a unit, or None."""

    def accept(value: object) -> int | None:
        if value is None:
            return None
        if isinstance(value, str):
            found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value)
            if found is None or found[2].upper() not in _UNITS:
                raise ValueError
            value = int(Fraction(found[1]) * _UNITS[found[2].upper()])
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ValueError
        return value

    return Check('a positive number of bytes, or text such as "20GiB", or None', accept)


def plan() -> Check:
    """Accept a Plan, the name of a policy, or a plan's file."""

    def accept(value: object) -> Plan | str:
        # Imported here: policies take their time to import.
        from coxcompile.planner.policies import POLICIES

        if isinstance(value, Plan):
            return value
        text = _text(value)
        if Path(text).suffix in (".json", ".toml"):
            return load(Plan, Path(text))
        look_up("policy", text, POLICIES)
        return text.lower()

    return Check("a Plan, a policy's name, or a plan's .json or .toml file", accept)


def hardware() -> Check:
    """Accept a HardwareSpec, the name of a system or a file with one, or None."""

    def accept(value: object) -> HardwareSpec | None:
        from coxcompile.systems import system_named

        if value is None or isinstance(value, HardwareSpec):
            return value
        return system_named(_text(value))

    return Check("a HardwareSpec, a name of `coxmoe systems`, a file with one, or None", accept)


def activation_map() -> Check:
    """Accept an ActivationMap, the file of one, or None."""

    def accept(value: object) -> ActivationMap | None:
        if value is None or isinstance(value, ActivationMap):
            return value
        return ActivationMap.load(Path(_text(value)))

    return Check("a coxcompile.ActivationMap, the file of one, or None", accept)


def _text(value: object) -> str:
    """A name or path as text."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise ValueError
    return text
