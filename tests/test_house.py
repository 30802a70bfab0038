"""The walls of the house: nothing imports upwards, and the ground rooms do not know each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tutelage

SOURCE = Path(tutelage.__file__).parent
GROUND = {"models", "data", "losses", "runs"}
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    **{room: {room, "errors", "files"} for room in GROUND},
    "methods": GROUND - {"runs"} | {"methods", "errors"},
    "recipes": {"recipes", "methods", "errors", "files"},
    "training": GROUND | {"training", "recipes", "methods", "errors", "files"},
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if isinstance(node, ast.ImportFrom) and node.module == "tutelage":
            names = [f"tutelage.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("tutelage.")}
    return rooms


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_nothing_imports_upwards(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room in MAY_IMPORT:
        assert imported_rooms(path) <= MAY_IMPORT[room]
