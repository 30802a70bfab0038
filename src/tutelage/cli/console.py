"""What a command leaves on stdout: one JSON object, or something to read."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

UNBOUNDED = 10_000
"""Columns of a stdout that is no terminal: programs that read lines want them whole."""


def speaks() -> bool:
    """Whether stdout is this process's; of several that compute together it is the first one's."""
    return os.environ.get("RANK", "0") == "0"


def finish(result: Mapping[str, Any], as_json: bool, render: Callable[[Console, Any], None]) -> None:
    """Print a command's result; of several processes the first one does.

    Args:
        result: What the job returned.
        as_json: Print it as one line of JSON instead of with ``render``.
        render: Prints the result for people.
    """
    if not speaks():
        return
    if as_json:
        print_json(result)
        return
    width = None if sys.stdout.isatty() else UNBOUNDED
    render(Console(highlight=False, markup=False, width=width), result)


def print_json(value: Any) -> None:
    """Print ``value`` as one line of strict JSON: NaN and infinities, which JSON lacks, become null."""
    sys.stdout.write(json.dumps(_strict(value), default=str) + "\n")


def facts(console: Console, pairs: Iterable[tuple[str, Any]]) -> None:
    """Print aligned names and values, leaving out values that are None."""
    grid = Table.grid(padding=(0, 2))
    for name, value in pairs:
        if value is not None:
            grid.add_row(name, Text(str(value)))
    console.print(grid)


def table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; columns that hold only numbers are set flush right."""
    cells = [tuple(row) for row in rows]
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, column in enumerate(columns):
        values = [row[place] for row in cells]
        known = [value for value in values if value is not None]
        numeric = bool(known) and all(isinstance(value, int | float) for value in known)
        grid.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(Text("-" if value is None else number(value)) for value in row))
    console.print(grid)


def number(value: Any) -> str:
    """Whole numbers with thousands apart, others to four digits, and anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(value: float | None) -> str | None:
    """A percentage with two decimals."""
    return None if value is None else f"{value:.2f}%"


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
