"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tutelage.errors import TutelageError, UserError
from tutelage.files import new_folder


def test_a_folder_appears_with_everything_in_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "new"
    with new_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["new"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with new_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "new" / "file").exists()


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path) -> None:
    told = pytest.raises(TutelageError, match=r"can't write .*new: No space left")
    with told, new_folder(tmp_path / "new"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"), new_folder(tmp_path / "file"):
        pass
    with pytest.raises(UserError, match="has something in it"), new_folder(tmp_path):
        pass
    assert (tmp_path / "file").read_text() == "x"
