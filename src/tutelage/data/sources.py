"""Images that stay where they are stored: in files, shards or tables, opened by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from tutelage.data.catalog import DatasetInfo
from tutelage.errors import UserError

TRAIN_NAMES = ("train",)
TEST_NAMES = ("test", "val", "validation")
"""What the parts are called; the first that is there is taken."""


class Source(ABC):
    """Encoded images of one split, and what they show.

    Any row can be opened at any time, in any process and thread. An order fixed by seed and epoch, batches
    that don't depend on the number of workers, and an exact resumption rest on that.

    Attributes:
        labels: `[n]` int64.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def open(self, row: int) -> BinaryIO:
        """The encoded image of a row.

        Raises:
            OSError: It can't be read.
        """

    @abstractmethod
    def name(self, row: int) -> str:
        """Where the image of a row is stored, for messages."""

    @abstractmethod
    def part(self, rows: Tensor) -> Source:
        """The given rows (`[m]` int64) alone, in their order."""

    def marks(self) -> Iterator[bytes]:
        """What names and measures the rows in their order, if possible the same wherever they are stored."""
        return (self.name(row).encode("utf-8", "surrogateescape") for row in range(len(self)))


@dataclass(frozen=True)
class StoredImages:
    """A dataset too large or too varied to be held in memory.

    Attributes:
        info: With the classes and numbers of images that were found.
        train: Training images.
        test: Test images.
    """

    info: DatasetInfo
    train: Source
    test: Source

    @property
    def train_labels(self) -> Tensor:
        """`[n]` int64 labels of the training images."""
        return self.train.labels


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that belongs to a dataset.

    Raises:
        UserError: It can't be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}; check the path and rights") from error


def check_labels(train: np.ndarray, test: np.ndarray, names: Sequence[str], where: object) -> None:
    """Refuse class numbers that are unknown, and classes without training images.

    Args:
        train: `[n]` class numbers.
        test: `[m]` class numbers.
        names: Of the classes.
        where: The images are from, for messages.

    Raises:
        UserError: There are such, or no images at all.
    """
    for what, labels in (("training", train), ("test", test)):
        if not len(labels):
            raise UserError(f"{where} has no {what} images; complete it")
        odd = labels[(labels < 0) | (labels >= len(names))]
        if len(odd):
            raise UserError(
                f"{where} has {what} images of class {odd[0]} ({len(odd)} images are of such classes), but "
                f"the classes are 0 to {len(names) - 1}; both parts need the same classes"
            )
    empty = np.setdiff1d(np.arange(len(names)), train)
    if len(empty):
        raise UserError(
            f"class {empty[0]} ('{names[empty[0]]}') has no training images in {where} ({len(empty)} of "
            f"{len(names)} classes have none); complete it"
        )


def numbered(labels: np.ndarray, where: object) -> tuple[str, ...]:
    """Names of classes that have none: their numbers.

    Args:
        labels: `[n]` class numbers of the training images.
        where: They are from, for messages.

    Raises:
        UserError: There can't be so many classes, as each has an image. One damaged number would otherwise
            take all memory here.
    """
    highest = int(labels.max(initial=-1))
    if highest >= len(labels):
        raise UserError(
            f"{where} has a training image of class {highest}, but {len(labels)} training images in all, too "
            "few for each class from 0 to have one; correct the class numbers"
        )
    return tuple(str(number) for number in range(highest + 1))


class Names:
    """Many strings in two arrays.

    A tuple of a million strings is copied piece by piece into every worker process, because Python counts
    references inside each of them; arrays stay shared.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *(len(name) for name in encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> str:
        if not 0 <= place < len(self):
            raise IndexError(place)
        text = self._text[self._ends[place] : self._ends[place + 1]]
        return text.tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))
