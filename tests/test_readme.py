"""The two READMEs say the same, and the lists in the documentation name what there is."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from check_docs import LINK, split
from tutelage.data import dataset_names
from tutelage.methods import method_names
from tutelage.recipes import Recipe, recipe_names
from tutelage.recipes.schema import Section
from tutelage.runs.published import published_tables

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"README.md": "README.zh-CN.md", "README.zh-CN.md": "README.md"}
SPAN = re.compile(r"`[^`]+`")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def outline(name: str) -> list[str]:
    """A letter for every line of prose that begins a heading, an item of a list or a row of a table."""
    marks = {"#": "heading", "-": "item", "|": "row"}
    prose, _ = split(read(name))
    kinds = [marks.get(line[:1], "") for line in prose]
    levels = [
        len(line) - len(line.lstrip("#")) if kind == "heading" else 0
        for line, kind in zip(prose, kinds, strict=True)
    ]
    return [f"{kind} {level}" for kind, level in zip(kinds, levels, strict=True) if kind]


def spans(name: str) -> Counter[str]:
    prose, _ = split(read(name))
    return Counter(SPAN.findall("\n".join(prose)))


def links(name: str) -> list[str]:
    prose, _ = split(read(name))
    found = [match["target"] for line in prose for match in LINK.finditer(line)]
    return [target for target in found if target not in NAMES]


def test_both_have_the_same_code() -> None:
    ours, theirs = (split(read(name))[1] for name in NAMES)
    assert [block[::2] for block in ours] == [block[::2] for block in theirs]
    assert len(ours) > 4


def test_both_have_the_same_headings_items_and_rows() -> None:
    ours, theirs = map(outline, NAMES)
    assert ours == theirs
    assert Counter(mark.split()[0] for mark in ours)["heading"] > 8


def test_both_name_the_same_things_and_lead_to_the_same_places() -> None:
    ours, theirs = NAMES
    assert spans(ours) == spans(theirs)
    assert links(ours) == links(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_each_leads_to_the_other(name: str) -> None:
    assert f"]({NAMES[name]})" in "\n".join(read(name).splitlines()[:5])


@pytest.mark.parametrize("name", NAMES)
def test_a_readme_names_every_method_and_dataset(name: str) -> None:
    teachers = {method for method in method_names() if method.endswith("_teacher")}
    assert {f"`{what}`" for what in {*method_names(), *dataset_names()} - teachers} <= set(spans(name))


def test_the_document_on_pairs_names_every_method() -> None:
    teachers = {method for method in method_names() if method.endswith("_teacher")}
    assert {f"`{what}`" for what in {*method_names()} - teachers - {"none"}} <= set(spans("docs/pairs.md"))


def test_the_documents_name_every_folder_of_recipes_and_file_of_figures() -> None:
    folders = {name.split("/")[0] for name in recipe_names()} - {"demo"}
    assert {f"`{folder}/`" for folder in folders} <= set(spans("docs/recipes.md"))
    files = {table.id.split("/")[0] for table in published_tables()}
    assert {f"`{file}.yaml`" for file in files} <= set(spans("docs/published.md"))


def test_the_recipe_document_names_every_setting() -> None:
    sections = [Recipe, *(part for part in Section.__subclasses__() if part.__module__ == Recipe.__module__)]
    settings = {field for section in sections for field in section.model_fields}
    assert {f"`{setting}`" for setting in settings} <= set(spans("docs/recipes.md"))
