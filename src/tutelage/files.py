"""Writing files so that a crash at any instant leaves the previous version whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, UserError


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, then rename it to ``path``.

    Args:
        path: Where the file is to be; its folder is made when missing.
        write: Called with the temporary path; whatever it leaves there becomes ``path``.

    Raises:
        TutelageError: The disk is full or the folder can't be written; ``path`` is as it was.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        os.chmod(temporary, 0o644)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise TutelageError(
            f"can't write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def named_path(path: str | Path) -> Path:
    """``path`` as a `Path`, which an empty name would silently turn into the working folder.

    Raises:
        UserError: The name is empty.
    """
    if not str(path):
        raise UserError("the name to write to is empty; give one, or '.' for the working folder")
    return Path(path)


def check_new_folder(path: Path) -> None:
    """Refuse a folder that can't be made new.

    Raises:
        UserError: ``path`` is a file, or a folder with something in it.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; choose a folder that doesn't exist yet")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} has something in it already; choose a new or an empty folder")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` which becomes ``path``, synced, once the block has filled it.

    When the block fails, nothing of it is left.

    Args:
        path: What the folder is to be called in the end; it may exist where it is empty.

    Raises:
        UserError: See `check_new_folder`.
        TutelageError: The disk is full or the folder above can't be written.
    """
    path = Path(path).absolute()
    check_new_folder(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield temporary
        for inner in (temporary, *temporary.rglob("*")):
            os.chmod(inner, 0o755 if inner.is_dir() else 0o644)
            sync_file(inner)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise TutelageError(
            f"can't write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Bring a file's or folder's content to the disk."""
    if path.is_dir():
        sync_folder(path)
        return
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut (a no-op where folders can't be opened)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """``$TUTELAGE_CACHE``, or ``~/.cache/tutelage``: what lies there can be made again."""
    given = os.environ.get("TUTELAGE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "tutelage"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text``, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
