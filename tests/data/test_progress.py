"""Progress of work on files: on a terminal, and only where it is wanted."""

from __future__ import annotations

import pytest
from rich.console import Console

from tutelage.data import progress
from tutelage.data.progress import advancing, silence


def bar(capsys: pytest.CaptureFixture[str]) -> str:
    with advancing("fetching some.bin", 1000, done=100) as advance:
        advance(400)
    return capsys.readouterr().err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True))


def test_a_file_gets_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert bar(capsys) == ""


def test_a_terminal_gets_one(capsys: pytest.CaptureFixture[str], terminal: None) -> None:
    shown = bar(capsys)
    assert "fetching some.bin" in shown and "0.5/1.0 kB" in shown


def test_unless_it_is_to_be_silent(capsys: pytest.CaptureFixture[str], terminal: None) -> None:
    with silence():
        assert bar(capsys) == ""
    with silence(False):
        assert bar(capsys) != ""
    assert bar(capsys) != ""
