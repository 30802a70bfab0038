"""Tables over several runs: one row for runs that differ only in their seed, one protocol per table."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tutelage.errors import UserError
from tutelage.runs.record import RunFolder
from tutelage.runs.results import Result, differing, read_result

HEADINGS = {
    "test": "best test epoch (chosen on test)",
    "val": "test at best val epoch",
}
"""What the column of best epochs is called, by the split that chose them."""
NUMBERS_FROM = 3
"""The first column that is set flush right."""


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed.

    Attributes:
        method: Name of the method.
        variant: The settings in which the row differs from others of the same method and networks; mostly "".
        student: Name of the trained network.
        teacher: Name of the teacher, or None.
        teacher_top1: Its test top-1 in percent, measured when the runs began, or None.
        top1: Mean over seeds of the test top-1 (percent) after the last epoch: the headline.
        top1_std: Sample standard deviation of it (n - 1 in the denominator); None for one seed.
        best_top1: Mean over seeds of the test top-1 (percent) at each run's best epoch.
        best_std: Sample standard deviation of it; None for one seed.
        best_by: The split that chose the best epoch, "test" or "val"; chosen on test it flatters.
        parameters: Of the student.
        macs: Multiply-accumulates of the student for one image.
        seconds: Mean over seeds of the time for training and the evaluation after each epoch.
        seeds: In ascending order.
        runs: Folders, in the order of the seeds.
    """

    method: str
    variant: str
    student: str
    teacher: str | None
    teacher_top1: float | None
    top1: float
    top1_std: float | None
    best_top1: float
    best_std: float | None
    best_by: str
    parameters: int
    macs: int
    seconds: float
    seeds: tuple[int, ...]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Gain:
    """How far one row's headline lies above another's, in percentage points.

    Attributes:
        mean: Difference of the means.
        standard_error: ``sqrt(s1^2 / n1 + s2^2 / n2)`` of the sample standard deviations; None where a row
            has one seed.
    """

    mean: float
    standard_error: float | None


def summarise(runs: Iterable[RunFolder | str | Path]) -> list[Row]:
    """Read finished runs and make a row of those that differ only in their seed.

    Args:
        runs: Folders, in any order; a row stands where its first run stands.

    Raises:
        UserError: No run is given, one is not finished or damaged, two have the same recipe and seed, or
            they follow different protocols.
    """
    results = [read_result(run.path if isinstance(run, RunFolder) else run) for run in runs]
    if not results:
        raise UserError("there is no run to put in a table; give one or more run folders")
    check_one_protocol(results)
    groups: list[list[Result]] = []
    for result in results:
        for group in groups:
            if not any(differing(member.settings, result.settings) for member in group):
                group.append(result)
                break
        else:
            groups.append([result])
    return [_row(group, _variant(group[0], [other[0] for other in groups])) for group in groups]


def check_one_protocol(results: Sequence[Result]) -> None:
    """Refuse results that can't be compared.

    Raises:
        UserError: Names two runs and the keys in which their protocols differ.
    """
    for first, other in combinations(results, 2):
        different = ", ".join(
            f"{key} {first.protocol.get(key)} and {other.protocol.get(key)}"
            for key in sorted(differing(first.protocol, other.protocol))
        )
        if different:
            raise UserError(
                f"{first.run} and {other.run} follow different protocols ({different}), so their "
                "accuracies can't stand in one table; make one table for each"
            )


def gain(row: Row, baseline: Row) -> Gain:
    """The difference of two rows' headlines, ``row`` minus ``baseline``."""
    error = None
    if row.top1_std is not None and baseline.top1_std is not None:
        error = math.sqrt(row.top1_std**2 / len(row.seeds) + baseline.top1_std**2 / len(baseline.seeds))
    return Gain(row.top1 - baseline.top1, error)


def as_dicts(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows as plain values that JSON can hold."""
    return [{**dataclasses.asdict(row), "seeds": list(row.seeds), "runs": list(row.runs)} for row in rows]


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells as text, the same in every form of the table."""
    headings = [
        "method",
        "student",
        "teacher (its test top-1)",
        "test top-1, last epoch",
        HEADINGS[rows[0].best_by] if rows else HEADINGS["test"],
        "parameters",
        "MACs",
        "time per run",
        "seeds",
    ]
    return headings, [
        [
            f"{row.method} ({row.variant})" if row.variant else row.method,
            row.student,
            "-" if row.teacher is None else f"{row.teacher} ({row.teacher_top1:.2f})",
            spread(row.top1, row.top1_std),
            spread(row.best_top1, row.best_std),
            f"{row.parameters:,}",
            f"{row.macs / 1e6:,.1f} M",
            f"{row.seconds:,.1f} s",
            str(len(row.seeds)),
        ]
        for row in rows
    ]


def spread(mean: float, std: float | None) -> str:
    """``mean ± sample standard deviation``, or the mean alone where one seed gives no deviation."""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def as_table(rows: Sequence[Row], title: str | None = None) -> Table:
    """The rows for a terminal."""
    headings, body = cells(rows)
    shown_title = None if title is None else Text(title)
    table = Table(title=shown_title, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place >= NUMBERS_FROM else "left", overflow="fold")
    for line in body:
        table.add_row(*(Text(cell) for cell in line))
    return table


def as_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, ending in a line feed."""
    headings, body = cells(rows)
    marks = ["---:" if place >= NUMBERS_FROM else "---" for place in range(len(headings))]
    lines = [headings, marks, *body]
    return "".join("| " + " | ".join(_in_markdown(cell) for cell in line) + " |\n" for line in lines)


def _in_markdown(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _variant(one: Result, all_kinds: Sequence[Result]) -> str:
    """The settings that tell ``one`` from others of the same method and networks."""

    def names(result: Result) -> tuple[str, str, str | None]:
        return result.method, result.student, result.teacher

    alike = [other for other in all_kinds if names(other) == names(one)]
    pairs = combinations(alike, 2)
    telling = {key for first, second in pairs for key in differing(first.settings, second.settings)}
    keys = dict.fromkeys(key for other in alike for key in other.settings if key in telling)
    return ", ".join(f"{key.removeprefix('method.')}={one.settings.get(key, 'unset')}" for key in keys)


def _row(group: list[Result], variant: str) -> Row:
    group = sorted(group, key=lambda result: result.seed)
    for one, next_one in pairwise(group):
        if one.seed == next_one.seed:
            raise UserError(
                f"{one.run} and {next_one.run} are the same recipe with the same seed {one.seed}, which "
                "would make the spread look smaller than it is; leave one out"
            )
    first = group[0]
    top1, best = [result.top1 for result in group], [result.best_top1 for result in group]
    return Row(
        method=first.method,
        variant=variant,
        student=first.student,
        teacher=first.teacher,
        teacher_top1=first.teacher_top1,
        top1=statistics.fmean(top1),
        top1_std=_deviation(top1),
        best_top1=statistics.fmean(best),
        best_std=_deviation(best),
        best_by=first.best_by,
        parameters=first.parameters,
        macs=first.macs,
        seconds=statistics.fmean(result.seconds for result in group),
        seeds=tuple(result.seed for result in group),
        runs=tuple(str(result.run) for result in group),
    )


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
