"""What ``torch.compile(model, backend="coxmoe", options={...})`` accepts as options."""

import difflib
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from coxcompile.runtime.choice_counts import ChoiceCounts

Training = Literal["error", "eager"]


class OptionsError(ValueError):
    """Options that the backend does not accept.

    ``problems`` holds one sentence per unknown option or wrong value: all of them, not only the
    first.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            message = self.problems[0]
        else:
            lines = "".join(f"\n  - {problem}" for problem in self.problems)
            message = f"{len(self.problems)} problems with the options of coxmoe:{lines}"
        super().__init__(message)


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
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
        if not isinstance(text, str) or not text:
            raise ValueError
        path = Path(os.path.expanduser(text))
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


def declare(*, help: str, check: Check, environment: str | None = None) -> dict[str, Any]:
    """Return the metadata of an option's field: one line of help, its check.

    ``environment`` names the environment variable that gives the value when the user does not;
    the check then has to accept text.
    """
    return {"help": help, "check": check, "environment": environment}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Validated options of one ``torch.compile`` call.

    To add an option, add a field: its name is what users write, and its declaration is all that
    validation and errors need. docs/options.md lists the same fields; a test compares the two.
    """

    training: Training = field(
        default="error",
        metadata=declare(
            help="What happens to a graph that needs gradients, which this backend does not"
            ' compile: "error" raises, "eager" runs it uncompiled and warns once.',
            check=one_of(*get_args(Training)),
        ),
    )
    dump: Path | None = field(
        default=None,
        metadata=declare(
            help="Directory to which the graph after each pass is written, made if missing;"
            " None writes nothing.",
            check=directory(),
            environment="COXMOE_DUMP",
        ),
    )
    pack_linears: bool = field(
        default=False,
        metadata=declare(
            help="Let Inductor keep packed copies of the weights of linear layers outside the"
            " experts: a few percent faster with many tokens, for more memory.",
            check=flag(),
        ),
    )
    packed_weight_budget: float = field(
        default=0.05,
        metadata=declare(
            help="Largest share of the model's bytes that packed copies may take.",
            check=share(),
        ),
    )
    count_choices: ChoiceCounts | None = field(
        default=None,
        metadata=declare(
            help="Where the compiled graph counts, on every call, how often each layer's experts"
            " are chosen; None counts nothing and costs nothing.",
            check=counters(),
        ),
    )

    @classmethod
    def from_user(cls, options: Mapping[str, object] | None) -> "Options":
        """Validate the ``options`` argument of ``torch.compile``; None means all defaults.

        Raises OptionsError, which lists every unknown option and every wrong value at once.
        """
        if options is None:
            options = {}
        if not isinstance(options, Mapping):
            raise OptionsError(
                [f"options: got {_describe(options)}; allowed: a dict from option names to values"]
            )
        names = [declared.name for declared in fields(cls)]
        problems = [_unknown(name, names) for name in options if name not in names]
        accepted: dict[str, Any] = {}
        for declared in fields(cls):
            check, environment = declared.metadata["check"], declared.metadata["environment"]
            value: object
            if declared.name in options:
                origin, value = f'option "{declared.name}"', options[declared.name]
            elif environment and (text := os.environ.get(environment)):
                origin, value = f"environment variable {environment}", text
            else:
                continue
            try:
                accepted[declared.name] = check.accept(value)
            except ValueError as reason:
                problems.append(_wrong(origin, value, check, str(reason)))
        if problems:
            raise OptionsError(problems)
        return cls(**accepted)


def _unknown(name: object, names: Sequence[str]) -> str:
    shown = f'"{name}"' if isinstance(name, str) else _describe(name)
    return f"unknown option {shown}; allowed: {', '.join(names)}{_suggestion(name, names)}"


def _wrong(origin: str, value: object, check: Check, reason: str) -> str:
    because = f", but {reason}" if reason else ""
    suggestion = _suggestion(value, check.choices)
    return f"{origin}: got {_describe(value)}{because}; allowed: {check.allowed}{suggestion}"


def _suggestion(given: object, candidates: Sequence[str]) -> str:
    if not isinstance(given, str):
        return ""
    nearest = difflib.get_close_matches(given.lower(), candidates, n=1)
    return f'; did you mean "{nearest[0]}"?' if nearest else ""


def _describe(value: object) -> str:
    # A tensor or a long list passed by mistake must not bury the message; a path must stay whole.
    shortened = reprlib.Repr()
    shortened.maxstring = 300
    return f"{shortened.repr(value)} ({type(value).__name__})"
