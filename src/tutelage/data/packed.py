"""Images inside tar files: where each one lies, so that any of them is read without the others."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tutelage.data.sources import TRAIN_NAMES, Source
from tutelage.errors import TutelageError, UserError
from tutelage.files import cache_folder, write_atomically

FORMAT = 1
"""Raised when an index comes to mean something else, so that older ones are not found any more."""

MOST_OPEN = 256
"""Archives that a process keeps open; more are opened for each image."""


class Member(NamedTuple):
    """A file inside an archive.

    Attributes:
        name: In the archive; behind the name of the inner archive where it lies in one.
        header: Byte at which its description begins.
        start: Byte at which its content begins.
        size: In bytes.
    """

    name: str
    header: int
    start: int
    size: int


class Index(NamedTuple):
    """Where the images of one split lie.

    Attributes:
        places: `[n, 4]` int64: number of the archive, header, start and size of the member.
        labels: `[n]` int64.
        names: Of the classes as far as the archives name them.
    """

    places: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] = ()


class Packed(Source):
    """Images inside uncompressed archives, each read by itself.

    Attributes:
        archives: Their paths.
        places: See `Index`.
        labels: See `Source`.
    """

    def __init__(self, archives: Sequence[str], places: np.ndarray, labels: Tensor) -> None:
        self.archives, self.places, self.labels = tuple(archives), places, labels
        self._files: dict[int, io.FileIO] = {}

    def open(self, row: int) -> BinaryIO:
        """See `Source`."""
        number, _, start, size = self.places[row].tolist()
        file = self._files.get(number)
        if file is None:
            file = io.FileIO(self.archives[number])
            if len(self._files) < MOST_OPEN:
                file = self._files.setdefault(number, file)
        content = read_at(file, start, size)
        if len(content) < size:
            raise OSError(f"{self.archives[number]} ends within an image")
        return io.BytesIO(content)

    def name(self, row: int) -> str:
        """See `Source`."""
        number, header = self.places[row, :2].tolist()
        with io.FileIO(self.archives[number]) as file:
            file.seek(header)
            try:
                with tarfile.open(fileobj=file, mode="r:") as here:
                    found = here.next()
            except tarfile.TarError:
                found = None
        return f"{self.archives[number]}!{found.name if found else f'byte {header}'}"

    def part(self, rows: Tensor) -> Packed:
        """See `Source`."""
        kept = rows.cpu()
        return Packed(self.archives, self.places[kept.numpy()], self.labels[kept])

    def marks(self) -> Iterator[bytes]:
        """See `Source`: the archives' names, and where in them the images lie."""
        for archive in self.archives:
            yield Path(archive).name.encode("utf-8", "surrogateescape")
        yield np.ascontiguousarray(self.places, dtype="<i8").tobytes()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for file in self._files.values():
            file.close()


# -- reading archives -------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """An archive's file.

    Raises:
        UserError: It can't be read, or turns out to be damaged while the block reads it.
    """
    try:
        with open(path, "rb") as file:
            yield file
    except tarfile.TarError as error:
        raise UserError(
            f"{path} is no whole, uncompressed tar file ({error}); fetch it again, or decompress it"
        ) from error
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}; check the path and rights") from error


def members(file: IO[bytes], nested: bool = False) -> Iterator[Member]:
    """The files inside an archive, in its order.

    Args:
        file: The archive; may be read and moved while this runs.
        nested: Go into archives inside.

    Raises:
        tarfile.TarError: The archive is damaged, or ends before its end.
    """
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (found := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or it would remember millions
            if not found.isreg() or found.issparse():
                continue
            if nested and found.name.lower().endswith(".tar"):
                inner = archive.extractfile(found)
                assert inner is not None
                within = found.offset_data
                for name, header, start, size in members(inner):
                    yield Member(f"{found.name}/{name}", within + header, within + start, size)
            else:
                yield Member(found.name, found.offset, found.offset_data, found.size)
        file.seek(archive.offset)
    # Where a header is damaged or missing, tarfile takes it for the end without a word.
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends in the middle")


def read_at(file: io.FileIO | IO[bytes], start: int, size: int) -> bytes:
    """Bytes of an open file, without moving in it: threads and processes that share it are not disturbed."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, start)
    with open(file.name, "rb") as own:
        own.seek(start)
        return own.read(size)


# -- finding archives -------------------------------------------------------------------------------


def find_split(folder: Path, wanted: str | None, names: Sequence[str]) -> tuple[str, tuple[Path, ...]]:
    """Name and archives of a split: ``NAME/*.tar``, else the archives with that word in their names.

    Args:
        folder: The dataset's.
        wanted: A name, or a pattern of files as "imagenet-train-*.tar"; None tries ``names``.
        names: What such a split is usually called.

    Raises:
        UserError: There are none.
    """
    what, setting = ("training", "train_split") if names == TRAIN_NAMES else ("test", "test_split")
    for name in (wanted,) if wanted else names:
        try:
            found = _archives(folder, name)
        except (NotImplementedError, ValueError) as error:  # an absolute pattern; one that is no pattern
            raise UserError(
                f"data.{setting}={name} can't be looked for ({error}); give a pattern of files in {folder}"
            ) from error
        if found:
            return name, found
    name = wanted or names[0]
    raise UserError(
        f"{folder} has no archives of {what} images, neither {name}/*.tar nor tar files with '{name}' in "
        f"their names; name them, or a pattern of files, as data.{setting}"
    )


def _archives(folder: Path, split: str) -> tuple[Path, ...]:
    if "*" in split or split.endswith(".tar"):
        return tuple(sorted(folder.glob(split)))
    inside = sorted((folder / split).glob("*.tar"))
    return tuple(inside or (path for path in sorted(folder.glob("*.tar")) if split in _words(path.stem)))


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", name.lower())


# -- remembering what was found ---------------------------------------------------------------------


def indexed(kind: Mapping[str, Any], archives: Sequence[Path], make: Callable[[], Index]) -> Index:
    """The index of some archives: the one that was kept when they were read before, else what ``make`` gives.

    Indices are kept in ``$TUTELAGE_CACHE``, by what they depend on: the archives' paths, sizes and times.

    Args:
        kind: What else the index depends on.
        archives: The files.
        make: Reads them.

    Raises:
        UserError: An archive is not there.
    """
    path = cache_folder() / "indices" / f"{_key(kind, archives)}.npz"
    kept = _kept(path)
    if kept is not None:
        return kept
    index = make()
    # Where there is no place for it, reading again another time is all that it costs.
    with suppress(TutelageError):
        write_atomically(path, partial(_write, index))
    return index


def packed(archives: Sequence[Path], index: Index) -> Packed:
    """The source of an index."""
    return Packed([str(path) for path in archives], index.places, torch.from_numpy(index.labels))


def _key(kind: Mapping[str, Any], archives: Sequence[Path]) -> str:
    facts: list[Any] = [FORMAT, dict(kind)]
    for path in archives:
        try:
            state = path.stat()
        except OSError as error:
            raise UserError(f"can't read {path}: {error.strerror}; complete the folder") from error
        facts.append([str(path.resolve()), state.st_size, state.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _kept(path: Path) -> Index | None:
    try:
        with np.load(path, allow_pickle=False) as found:
            return Index(found["places"], found["labels"], tuple(found["names"].tolist()))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent or damaged: reading the archives again is the answer


def _write(index: Index, path: Path) -> None:
    with open(path, "wb") as file:  # given a path, NumPy would add its own ending
        np.savez(file, places=index.places, labels=index.labels, names=np.array(index.names, dtype=np.str_))
