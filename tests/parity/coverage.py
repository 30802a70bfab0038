"""Which golden cases the parity tests pick up, and which belong to methods still to come.

A parity test module names what it handles and parametrises its tests over exactly these cases::

    METHODS = {"Hinton KD"}
    CASES = [case for case in cases("loss") if case["method"] in METHODS]

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])

What it picks up is read from the ``parametrize`` marks, so a case counts only if a test really runs on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from parity.golden import Case

SKIPPING_MARKS = {"skip", "skipif", "xfail"}


class NotYet(NamedTuple):
    """Cases without a test because their method doesn't exist yet."""

    kind: str
    method: str
    ids: str = "*"

    def matches(self, case: Case) -> bool:
        """Whether ``case`` is one of these (``ids`` is a shell pattern for its id)."""
        same = (case["kind"], case["method"]) == (self.kind, self.method)
        return same and fnmatchcase(case["id"], self.ids)


# Implementing a method takes its lines out of this list and its number out of NOT_YET_SIZE. Nothing is added.
NOT_YET: tuple[NotYet, ...] = ()
NOT_YET_SIZE = 0


def parity_modules() -> dict[str, ModuleType]:
    """Every parity test module beside this file by name, except the test of this file."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))
    names.remove("test_coverage")
    return {name: importlib.import_module(f"{__package__}.{name}") for name in names}


def declared(modules: Iterable[ModuleType]) -> set[str]:
    """All ``METHODS`` that the modules say they handle."""
    return {method for module in modules for method in module.METHODS}


def picked_up(module: ModuleType) -> set[str]:
    """Ids of the cases that the test functions of ``module`` are parametrised over."""
    if _skips(module):
        return set()
    return {case_id for test in _tests(module) if not _skips(test) for case_id in _parametrised_ids(test)}


def covered(case: Case, picks: Mapping[str, set[str]]) -> bool:
    """Whether exactly one test module picks ``case`` up; ``picks`` is ``picked_up`` by module name."""
    return sum(case["id"] in ids for ids in picks.values()) == 1


def complaints(
    found: Iterable[Case],
    picks: Mapping[str, set[str]],
    methods: set[str],
    not_yet: Iterable[NotYet] = NOT_YET,
) -> list[str]:
    """What is wrong with the coverage of the cases ``found``, one sentence each.

    Args:
        found: The cases of an index that have numbers.
        picks: Ids by test module.
        methods: All methods that the test modules declare.
        not_yet: Cases that may go without a test.
    """
    waiting = tuple(not_yet)
    wrong = []
    for case in found:
        name = f"{case['id']} ({case['kind']}, {case['method']!r})"
        pickers = [module for module, ids in picks.items() if case["id"] in ids]
        to_come = any(entry.matches(case) for entry in waiting)
        if len(pickers) > 1:
            wrong.append(f"{name} is picked up by several modules: {', '.join(pickers)}")
        elif pickers and to_come:
            wrong.append(f"{name} is picked up by {pickers[0]} and still listed as not yet covered")
        elif not pickers and case["method"] in methods and not to_come:
            wrong.append(f"{name} belongs to a covered method, but no test picks it up")
        elif not pickers and not to_come:
            wrong.append(f"{name} is of a method that no parity test knows")
    return wrong


def _tests(owner: Any) -> Iterator[Any]:
    """Test functions of a module, those in classes included."""
    for name, member in vars(owner).items():
        if name.startswith("test") and callable(member):
            yield member
        elif name.startswith("Test") and isinstance(member, type) and not _skips(member):
            yield from _tests(member)


def _marks(owner: Any) -> list[Any]:
    """Pytest marks on a function, class or module."""
    marks = getattr(owner, "pytestmark", [])
    return list(marks) if isinstance(marks, (list, tuple)) else [marks]


def _skips(owner: Any) -> bool:
    return any(mark.name in SKIPPING_MARKS for mark in _marks(owner))


def _parametrised_ids(test: Any) -> Iterator[str]:
    """Ids of all cases among the values of a test's ``parametrize`` marks."""
    for mark in _marks(test):
        if mark.name == "parametrize":
            for value in mark.kwargs.get("argvalues", mark.args[-1]):
                yield from _ids_in(value)


def _ids_in(value: Any) -> Iterator[str]:
    """Ids of the cases in one parameter: a case, a ``pytest.param`` or a tuple with one."""
    if isinstance(value, dict) and {"id", "method"} <= set(value):
        yield value["id"]
    elif hasattr(value, "marks"):
        if not any(mark.name in SKIPPING_MARKS for mark in value.marks):
            yield from (case_id for part in value.values for case_id in _ids_in(part))
    elif isinstance(value, tuple):
        yield from (case_id for part in value for case_id in _ids_in(part))
