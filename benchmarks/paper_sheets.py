"""A table as it is printed and as it stands in a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Sheet:
    """Rows of text under a title; ``note`` says what the numbers are for."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, caption=self.note)
        for column in self.columns:
            table.add_column(column, justify="left" if column == self.columns[0] else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a page; first the note."""
        lines = [
            "| " + " | ".join(cells) + " |"
            for cells in (self.columns, ("---",) * len(self.columns), *self.rows)
        ]
        return f"{self.note}\n\n" + "\n".join(lines) + "\n"


def times(ratio: float | None) -> str:
    """1.2345 as "1.23x"; nothing for None."""
    return "" if ratio is None else f"{ratio:.2f}x"


def seconds(value: float) -> str:
    """With three digits."""
    return f"{value:.3g} s"


def percent(share: float) -> str:
    """0.1234 as "12.3%"."""
    return f"{share:.1%}"


def between(bounds: tuple[float, float]) -> str:
    """A range of ratios."""
    return f"{bounds[0]}-{bounds[1]}x"
