"""Files of a published dataset, known by size and MD5: found, checked, fetched."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tutelage.data.archives import contents, reading, save, tar_files
from tutelage.data.download import RemoteFile, fetch, md5_of
from tutelage.errors import UserError
from tutelage.files import write_atomically


@dataclass(frozen=True)
class OfficialFile:
    """One official file.

    Attributes:
        name: Inside the folder.
        size: In bytes.
        md5: Hexadecimal digest of the content.
    """

    name: str
    size: int
    md5: str


def folder_asked_for(name: str, inner: str, folder: Path | None) -> Path:
    """The user's folder.

    Args:
        name: Of the dataset.
        inner: Name of the folder with the files.
        folder: As the user gave it.

    Raises:
        UserError: None was given.
    """
    if folder is None:
        raise UserError(
            f"{name} needs its files: give the folder that holds {inner} with --data-dir, "
            "and add --download to fetch them into it"
        )
    return folder


def locate(name: str, inner: str, files: Sequence[OfficialFile], folder: Path) -> Path:
    """The folder with the files: the one in ``folder`` or ``folder`` itself.

    Raises:
        UserError: Neither has one of them.
    """
    for place in (folder / inner, folder):
        if any((place / file.name).is_file() for file in files):
            return place
    what = "has neither" if folder.is_dir() else "does not exist, so it has neither"
    raise UserError(
        f"no {name} found: {folder} {what} {inner}/ nor the files "
        f"{', '.join(file.name for file in files)}; point --data-dir at them or add --download"
    )


def check_size(path: Path, file: OfficialFile) -> None:
    """Refuse a file that can't be right, before any is read.

    Raises:
        UserError: It is missing, truncated or too long.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the whole official folder there or add --download")
    size = path.stat().st_size
    if size != file.size:
        what = "truncated" if size < file.size else "corrupt"
        raise UserError(
            f"{path} is {what}: it has {size} bytes instead of {file.size}; copy it anew or add --download"
        )


def checked_bytes(place: Path, file: OfficialFile) -> bytes:
    """Content of a file whose MD5 is right.

    Raises:
        UserError: It isn't.
    """
    path = place / file.name
    raw = path.read_bytes()
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != file.md5:
        raise UserError(
            f"{path} is corrupt: its MD5 is not the official {file.md5}; copy it anew or add --download"
        )
    return raw


def fetch_unless_sound(archive: RemoteFile, inner: str, files: Sequence[OfficialFile], folder: Path) -> None:
    """Fetch and unpack a tar, unless every file is there and right; the tar itself is deleted afterwards.

    Args:
        archive: With the files in a folder ``inner``; what else it holds is left in it.
        inner: Name of the folder.
        files: To unpack, each whole or not at all.
        folder: The folder itself, where it is called ``inner``, or the one to make it in.

    Raises:
        UserError: The tar is not sound.
        TutelageError: It can't be fetched or unpacked.
    """
    parent = folder.parent if folder.name == inner else folder
    wanted = {f"{inner}/{file.name}": parent / inner / file.name for file in files}
    if all(_sound(parent / inner / file.name, file) for file in files):
        return
    tar_path = fetch(archive, parent)
    with reading(tar_path), tarfile.open(tar_path) as tar:
        for path, member in tar_files(tar, tar_path):
            target = wanted.pop(str(path), None)
            if target is not None:
                with contents(tar, member) as source:
                    write_atomically(target, partial(save, source))
            if not wanted:
                break
    tar_path.unlink()


def _sound(path: Path, file: OfficialFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and md5_of(path) == file.md5
