"""A progress bar for index builds, on standard error, and silence where that is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[str, int, int | None], None]


@contextmanager
def index_progress(name: str) -> Iterator[Advance]:
    """Yields a function (stage, passages done, passages expected) that moves the bar."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(name, total=None)

        def advance(stage: str, done: int, expected: int | None) -> None:
            total = max(done, expected) if expected is not None else None
            progress.update(task, description=f"{name}: {stage}", completed=done, total=total)

        yield advance
