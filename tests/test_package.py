"""The package itself: its version, and functions that load when they are used."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tutelage


def test_the_version_is_that_of_the_project() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert found is not None and tutelage.__version__ == found[1]


@pytest.mark.parametrize("name", [name for name in tutelage.__all__ if name != "__version__"])
def test_every_public_name_is_a_function_with_a_docstring(name: str) -> None:
    function = getattr(tutelage, name)
    assert callable(function) and function.__name__ == name and function.__doc__
    assert name in dir(tutelage)


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        tutelage.trian  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, tutelage; print(sorted(sys.modules.keys() & {'torch', 'numpy', 'pydantic', 'typer'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
