"""Folders of many files that appear when they are whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tutelage.data.catalog import DatasetInfo
from tutelage.errors import TutelageError, UserError
from tutelage.files import sync_folder


@contextmanager
def making(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to fill, which is renamed to ``target`` once the block has done so.

    If the block fails, nothing is left of it; what a killed process left is removed at the next attempt.
    Files may be hard links to others: their modes are left alone.

    Args:
        target: What the folder is to be called; not there yet.

    Raises:
        TutelageError: Something can't be read or written, e.g. because the disk is full.
    """
    beside = target.parent / f".{target.name}.making"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(beside)
        beside.mkdir()
        yield beside
        if hasattr(os, "sync"):
            os.sync()  # one call for all files: syncing each takes as long as writing it
        beside.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        named = f" ({error.filename})" if error.filename else ""
        raise TutelageError(
            f"can't make {target}: {error.strerror or error}{named}; nothing of it was left there, free "
            "space or choose another folder and run this again"
        ) from error
    finally:
        _remove(beside)


def is_prepared(target: Path, info: DatasetInfo) -> bool:
    """Whether ``target`` is there and has all class folders; a preparation never leaves one without.

    Raises:
        UserError: It is there and has something else in it.
    """
    if not target.exists():
        return False
    folders = [target / split / name for split in ("train", "val") for name in info.class_names]
    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise UserError(
            f"{target} exists already, but is no prepared {info.name} ({missing} is missing); choose another "
            "--to, or remove it"
        )
    return True


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
