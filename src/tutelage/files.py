"""Writing files so that a crash at any instant leaves the previous version whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, UserError

try:
    import fcntl
except ImportError:  # on Windows, where `held` keeps nobody out
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.tmp")
"""What `write_atomically` calls the file that is to become ``name``."""


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


def remove_leftovers(folder: Path, names: re.Pattern[str]) -> None:
    """Delete what processes that were killed while they wrote atomically have left in ``folder``.

    Args:
        folder: In which nobody else writes such files now.
        names: Of the files that were to be written; other files' leftovers stay.
    """
    for path in folder.glob(".*.tmp"):
        found = TEMPORARY.fullmatch(path.name)
        if found and names.fullmatch(found["name"]) and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def held(path: Path, otherwise: str) -> Iterator[None]:
    """Keep other processes out of such a block with the same ``path`` while this one runs.

    The lock is the process's and goes with it, however it ends; the empty file stays and means nothing. Where
    the system, or the file system, knows no locks, nobody is kept out.

    Args:
        path: Of the file to lock, which nothing else may open.
        otherwise: What to say where another process is in it.

    Raises:
        UserError: Another process is.
        TutelageError: The file can't be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise TutelageError(f"can't write {path}: {error.strerror}; choose another folder") from error
    try:
        if fcntl is not None:
            _lock(descriptor, otherwise)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, otherwise: str) -> None:
    try:
        # Not flock, whose lock the processes that decode images would inherit and hold on to.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise UserError(otherwise) from error
    except OSError:
        pass  # a file system without locks


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
