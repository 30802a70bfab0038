"""Reading archives that nobody vouches for: plain files, and none outside the folder they are meant for."""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tutelage.data.download import CHUNK
from tutelage.errors import UserError

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
"""What the standard library raises for archives that are cut off, damaged or of an unknown kind."""


@contextmanager
def reading(archive: Path) -> Iterator[None]:
    """Turn what a damaged archive raises inside the block into a sentence.

    Raises:
        UserError: The archive is damaged or no archive.
    """
    try:
        yield
    except DAMAGED as error:
        reason = first_line(error)
        raise UserError(
            f"{archive} is damaged or no such archive ({reason}); fetch the official file anew"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":. ") if lines else type(error).__name__


def inner_path(name: str, archive: Path) -> PurePosixPath:
    """The path of a file in an archive, refused where it leads elsewhere.

    Raises:
        UserError: It is absolute, climbs out, or is none at all.
    """
    path = PurePosixPath(name)
    drive = re.match(r"[A-Za-z]:", name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or drive or not path.parts:
        raise UserError(
            f"{archive} holds {name!r}, which would be written outside its folder; nothing of it was taken, "
            "fetch the official file"
        )
    return path


def tar_files(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo]]:
    """The plain files of an open tar in its order.

    Args:
        tar: Open for reading.
        archive: What messages call it.

    Raises:
        UserError: A member's name leads elsewhere, or it is a link or a device.
    """
    for member in tar:
        path = inner_path(member.name, archive)
        if member.isdir():
            continue
        if not member.isreg():
            raise UserError(
                f"{archive} holds the link or device {member.name!r}; nothing of it was taken, fetch the "
                "official file"
            )
        yield path, member


def zip_files(opened: zipfile.ZipFile, archive: Path) -> Iterator[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """The plain files of an open zip in its order; see `tar_files`."""
    for member in opened.infolist():
        path = inner_path(member.filename, archive)
        if member.is_dir():
            continue
        mode = member.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise UserError(
                f"{archive} holds the link or device {member.filename!r}; nothing of it was taken, fetch the "
                "official file"
            )
        yield path, member


def contents(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    """The content of a plain file in a tar, as `tar_files` gives it."""
    opened = tar.extractfile(member)
    assert opened is not None  # it is None for what is no plain file
    return opened  # type: ignore[return-value]  # IO[bytes], which is what a BinaryIO is


def save(source: BinaryIO, target: Path) -> None:
    """Write what ``source`` holds to ``target``, whose folder is made when missing.

    Raises:
        OSError: It can't be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as output:
        shutil.copyfileobj(source, output, CHUNK)
