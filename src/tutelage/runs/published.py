"""Figures that papers and projects published, from ``published/*.yaml``; docs/published.md has the form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tutelage.errors import TutelageError

SIZES = re.compile(r"_cifar$|(_patch\d+)?(_window\d+)?(_224|_100)$")
"""The end of a network's name that says how large its images or it itself are."""

PERCENT = {"top1", "top5", "linear_top1", "joint_top1", "class_top1", "map"}
"""Metrics that can't be above 100."""


class Part(BaseModel):
    """A part of a file: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Publication(Part):
    """Who published the figures."""

    project: str = Field(min_length=1, description="Short name.")
    url: str = Field(pattern="^https://", description="The project's page.")
    paper: str | None = Field(None, description="Title, venue and year; None where there is no paper.")
    arxiv: str | None = Field(None, pattern=r"^\d{4}\.\d{5}$", description="Number of the paper there.")


class Figure(Part):
    """One published number with all that says what it measures."""

    project: str = Field(description="Of the publication.")
    table: str = Field(description="Id of the table.")
    label: str = Field(min_length=1, description="What the publication calls the row.")
    method: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$",
        description="Our name of the method; a name of its own where it isn't ours.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the method that are not the publication's usual ones."
    )
    teacher: str | None = Field(None, min_length=1, description="Name of the network, as timm knows it.")
    student: str = Field(min_length=1, description="Name of the network that is measured, as timm knows it.")
    dataset: str = Field(min_length=1, description="What it is measured on.")
    few_ratio: float = Field(1.0, gt=0, le=1, description="Share of the training images used.")
    metric: Literal[
        "top1",
        "top5",
        "linear_top1",
        "joint_top1",
        "class_top1",
        "map",
        "loss",
        "loss_ce",
        "loss_kl",
        "seconds_per_epoch",
        "step_mmacs",
    ] = Field(description="What is measured; accuracies and mean average precision in percent.")
    value: float = Field(gt=0, description="The number.")
    std: float | None = Field(None, ge=0, lt=10, description="What the publication prints after ±.")
    teacher_top1: float | None = Field(None, gt=0, le=100, description="The teacher's accuracy in percent.")
    epoch: int | None = Field(
        None, ge=0, description="After which epoch, from 0; None for the result of a run."
    )
    branch: int | None = Field(
        None, ge=1, description="Which branch, from the shallowest; None for the network."
    )
    source: Literal["paper", "readme", "log", "issue", "quoted", "unchecked", "derived"] = Field(
        description="Where it was read. Quoted: in public text about the paper. Unchecked: the paper's "
        "table, not yet compared with the paper. Derived from the networks' sizes: published nowhere."
    )
    recipe: str | None = Field(None, description="Bundled recipe of the run.")
    teacher_recipe: str | None = Field(None, description="Bundled recipe that makes the teacher.")
    note: str = Field("", description="What else must be known.")

    @model_validator(mode="after")
    def _in_range(self) -> Figure:
        if self.metric in PERCENT and self.value > 100:
            raise ValueError(f"{self.metric} of {self.value} is above 100 percent")
        if self.teacher_top1 is not None and self.teacher is None:
            raise ValueError("the accuracy of a teacher is given, but no teacher")
        return self


class Table(Part):
    """A table of figures, row by row."""

    id: str
    title: str
    note: str
    publication: Publication
    protocol: str
    figures: tuple[Figure, ...]


class _TableText(Part):
    """A table as its file has it; what is given nearer to the number wins."""

    id: str
    title: str
    note: str = ""
    shared: dict[str, Any] = Field(default_factory=dict)
    columns: list[dict[str, Any]] = Field([{}], min_length=1)
    rows: list[dict[str, Any]] = Field(min_length=1)


class _File(Part):
    publication: Publication
    protocol: str = Field(min_length=1)
    tables: list[_TableText] = Field(min_length=1)


@cache
def published_tables() -> tuple[Table, ...]:
    """All tables, file by file.

    Raises:
        TutelageError: A file is damaged.
    """
    files = [
        f for f in resources.files("tutelage").joinpath("published").iterdir() if f.name.endswith(".yaml")
    ]
    files.sort(key=lambda file: file.name)
    return tuple(
        table for file in files for table in read_tables(file.read_text(encoding="utf-8"), file.name)
    )


def find(
    method: str,
    teacher: str | None,
    student: str,
    dataset: str,
    few_ratio: float = 1.0,
    *,
    settings: Mapping[str, Any] | None = None,
    metric: str = "top1",
) -> list[Figure]:
    """The published results of one kind of run.

    A number that a project printed more than once comes once, with the table that is first.

    Args:
        method: Our name.
        teacher: Name of the teacher; None for a method without one.
        student: Name of the trained network.
        dataset: What it is measured on.
        few_ratio: Share of the training images.
        settings: Departures from the publication's usual settings, as in ablations; None for none.
        metric: What is measured, see `Figure.metric`.

    Returns:
        Figures in the order of their tables; empty where nothing was published.
    """
    wanted = (method, teacher, student, dataset, few_ratio, dict(settings or {}), metric, None, None)
    found: dict[tuple[str, float], Figure] = {}
    for table in published_tables():
        for f in table.figures:
            kind = (
                f.method,
                f.teacher,
                f.student,
                f.dataset,
                f.few_ratio,
                f.settings,
                f.metric,
                f.epoch,
                f.branch,
            )
            if kind == wanted:
                found.setdefault((f.project, f.value), f)
    return list(found.values())


def read_tables(text: str, name: str) -> list[Table]:
    """The tables in a file's ``text``.

    Raises:
        TutelageError: Names the file, the place and what is wrong there.
    """
    where = ""
    try:
        file = _File.model_validate(yaml.safe_load(text))
        tables = []
        for table in file.tables:
            where = f", table {table.id}"
            figures = tuple(
                Figure.model_validate(values) for values in _cells(table, file.publication.project)
            )
            tables.append(
                Table(
                    id=table.id,
                    title=table.title,
                    note=table.note,
                    publication=file.publication,
                    protocol=file.protocol,
                    figures=figures,
                )
            )
        return tables
    except (yaml.YAMLError, ValidationError, ValueError, KeyError) as error:
        problem = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise TutelageError(
            f"the published figures in {name}{where} can't be read ({problem}); install Tutelage again"
        ) from error


def _cells(table: _TableText, project: str) -> Iterator[dict[str, Any]]:
    """The figures of a table as plain values."""
    for row in table.rows:
        row = dict(row)
        cells = row.pop("figures")
        if len(cells) != len(table.columns):
            raise ValueError(
                f"row {row.get('label')} has {len(cells)} figures for {len(table.columns)} columns"
            )
        for column, cell in zip(table.columns, cells, strict=True):
            if cell is not None:
                own = _cell(cell)
                values = {"project": project, "table": table.id, **table.shared, **column, **row, **own}
                yield {**values, **_recipes(values)}


def _cell(cell: Any) -> dict[str, Any]:
    """A cell is a number, a number with its deviation, or a mapping of these and more."""
    if isinstance(cell, dict):
        return cell
    if isinstance(cell, list):
        value, std = cell
        return {"value": value, "std": std}
    return {"value": cell}


def _recipes(values: Mapping[str, Any]) -> dict[str, str]:
    """The names of the recipes, with the networks' names put in, which go without `SIZES` there."""
    parts = {role: SIZES.sub("", str(values.get(role))) for role in ("teacher", "student")}
    percent = round(100 * values.get("few_ratio", 1.0))
    named = [key for key in ("recipe", "teacher_recipe") if values.get(key) is not None]
    return {key: values[key].format(**parts, percent=percent) for key in named}
