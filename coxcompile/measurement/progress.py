"""A progress bar that does not wake up in the middle of timings."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextlib.contextmanager
def progress_bar(description: str, steps: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Gives what to call after each of ``steps`` steps; on stderr, gone when done."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        # Its thread would otherwise run beside what is timed.
        auto_refresh=False,
        disable=not shown,
    )
    with progress:
        task = progress.add_task(description, total=steps)
        yield lambda: progress.update(task, advance=1, refresh=True)
