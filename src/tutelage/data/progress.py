"""Progress of work on files, shown on a terminal and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import TransferSpeedColumn as Speed

Advance = Callable[[int], None]
"""Told how much more is done."""

_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def silence(wanted: bool = True) -> Iterator[None]:
    """Show no progress inside the block."""
    token = _SILENT.set(wanted)
    try:
        yield
    finally:
        _SILENT.reset(token)


@contextmanager
def advancing(title: str, total: int | None, done: int = 0, in_bytes: bool = True) -> Iterator[Advance]:
    """A bar on stderr while the block works, where stderr is a terminal; it is removed at the end.

    Args:
        title: What is being done.
        total: How much there is to do; None where nobody knows.
        done: How much of it is behind already.
        in_bytes: Whether bytes are counted, or things.
    """
    console = Console(stderr=True)
    if _SILENT.get() or not console.is_terminal:
        yield lambda _: None
        return
    columns = [DownloadColumn(), Speed()] if in_bytes else [MofNCompleteColumn()]
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda more: progress.update(task, advance=more)
