"""Images in folders: which files there are, and what each shows."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from timm.data import ImageNetInfo
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from tutelage.data.catalog import IMAGENET_NORMALISATION, DatasetInfo, register_dataset
from tutelage.data.sources import TEST_NAMES, Names, Source, StoredImages, read_lines
from tutelage.errors import UserError

LISTS = ("meta", "metas")
"""Folders that hold ``val.txt`` where the validation images lie in one flat folder."""


class Files(Source):
    """Image files and what they show.

    Attributes:
        paths: In the order of the rows.
        labels: See `Source`.
    """

    def __init__(self, paths: Iterable[str], labels: Tensor) -> None:
        self.paths, self.labels = Names(paths), labels

    def open(self, row: int) -> BinaryIO:
        """See `Source`."""
        return open(self.paths[row], "rb")

    def name(self, row: int) -> str:
        """See `Source`."""
        return self.paths[row]

    def part(self, rows: Tensor) -> Files:
        """See `Source`."""
        return Files((self.paths[row] for row in rows.tolist()), self.labels[rows.cpu()])

    def marks(self) -> Iterator[bytes]:
        """See `Source`: each file's name with its folder's, and its size."""
        for path in self.paths:
            try:
                size = os.stat(path).st_size
            except OSError:
                size = -1
            yield f"{'/'.join(Path(path).parts[-2:])} {size}".encode("utf-8", "surrogateescape")


def scan_folders(info: DatasetInfo, folder: Path, test_names: Sequence[str] = TEST_NAMES) -> StoredImages:
    """Look for ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val``, or ``validation``).

    The classes are the folders of ``train`` in alphabetical order. Names that start with a dot are passed
    over, be they classes or files: they are what macOS, editors and notebooks leave behind. A flat ``val``
    whose labels stand in ``meta/val.txt`` (lines of file name and class number) is read as well, ImageNet's
    layout in PACKD.

    Args:
        info: Of the dataset, without classes and numbers of images.
        folder: That holds ``train``.
        test_names: What the folder of the test images may be called; the first that is there is taken.

    Raises:
        UserError: A part is missing or empty, its classes differ, or the list doesn't fit the files.
    """
    train_folder = folder / "train"
    if not train_folder.is_dir():
        raise UserError(
            f"there is no folder {train_folder}; dataset '{info.name}' is read from --data-dir FOLDER with "
            "FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg"
        )
    test_folder = next((folder / name for name in test_names if (folder / name).is_dir()), None)
    if test_folder is None:
        raise UserError(
            f"{folder} has no test images; put them into {folder / 'val'}/CLASS, with the classes of 'train'"
        )
    classes = _class_names(train_folder)
    train = _by_class(train_folder, classes)
    listed = find_list(folder)
    flat = not _folders_in(test_folder)
    if flat and listed is not None:
        test = _by_list(test_folder, listed, len(classes))
    else:
        check_same_classes(classes, _class_names(test_folder), train_folder, test_folder)
        test = _by_class(test_folder, classes)
    found = dataclasses.replace(info, class_names=classes, train_count=len(train), test_count=len(test))
    return StoredImages(found, train, test)


def is_hidden(path: Iterable[str]) -> bool:
    """Whether a file, or a folder on the way to it, has a name that starts with a dot."""
    return any(part.startswith(".") for part in path)


def _folders_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(e.name for e in folder.iterdir() if e.is_dir() and not is_hidden((e.name,))))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = _folders_in(folder)
    if not names:
        raise UserError(f"{folder} has no class folders; put each class's images into a folder of its own")
    return names


def _by_class(folder: Path, classes: tuple[str, ...]) -> Files:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = folder / name
        here = sorted(
            str(path)
            for path in inside.rglob("*")
            if path.suffix.lower() in IMG_EXTENSIONS and not is_hidden(path.relative_to(inside).parts)
        )
        if not here:
            raise UserError(f"{inside} has no images ({', '.join(IMG_EXTENSIONS)})")
        paths += here
        labels += [label] * len(here)
    return Files(paths, torch.tensor(labels))


def _by_list(folder: Path, listed: Path, classes: int) -> Files:
    entries = read_list(listed, classes)
    paths = [str(folder / name) for name, _ in entries]
    missing = next((path for path in paths if not Path(path).is_file()), None)
    if missing is not None:
        raise UserError(f"{listed} names {missing}, which is not there; complete {folder}")
    return Files(paths, torch.tensor([label for _, label in entries], dtype=torch.int64))


def find_list(folder: Path) -> Path | None:
    """The list of a dataset's flat validation images, if it has one."""
    return next((folder / name / "val.txt" for name in LISTS if (folder / name / "val.txt").is_file()), None)


def read_list(listed: Path, classes: int) -> list[tuple[str, int]]:
    """File names and class numbers, a pair a line.

    Args:
        listed: The file.
        classes: How many there are.

    Raises:
        UserError: A line is something else.
    """
    entries: list[tuple[str, int]] = []
    for number, line in enumerate(read_lines(listed), start=1):
        name, _, label = line.rpartition(" ")
        if not name or not re.fullmatch(r"[0-9]{1,9}", label) or int(label) >= classes:
            raise UserError(
                f"line {number} of {listed} is no file name with a class number below {classes}: "
                f"{line[:80]!r}"
            )
        entries.append((name, int(label)))
    return entries


def check_same_classes(
    train: Iterable[str], test: Iterable[str], train_place: Path, test_place: Path
) -> None:
    """Refuse parts with different classes.

    Raises:
        UserError: A class is in one place and not in the other.
    """
    known = set(train)
    odd = sorted(known ^ set(test))
    if odd:
        where = test_place if odd[0] in known else train_place
        raise UserError(
            f"class '{odd[0]}' has no folder in {where}, but in the other part ({len(odd)} classes differ); "
            "both parts need the same classes"
        )


IMAGENET = DatasetInfo(
    name="imagenet",
    class_names=tuple(ImageNetInfo().label_names()),
    image_size=224,
    normalisation=IMAGENET_NORMALISATION,
    train_count=1281167,
    test_count=50000,
    padding=0,
    flip=True,
    source="Russakovsky et al. 2015, arXiv 1409.0575; image-net.org",
    licence="non-commercial research, after registration",
)
FOLDER = DatasetInfo(
    name="folder",
    class_names=(),
    image_size=224,
    normalisation=IMAGENET_NORMALISATION,
    train_count=0,
    test_count=0,
    padding=0,
    flip=True,
    source="your own images: train/CLASS/* and val/CLASS/*",
    licence="yours",
)


def given_folder(info: DatasetInfo, folder: Path | None, download: bool) -> Path:
    """The folder of a dataset that nobody can download.

    Raises:
        UserError: It is to be downloaded, or no folder is given.
    """
    if download:
        raise UserError(f"dataset '{info.name}' can't be downloaded; put its images into --data-dir FOLDER")
    if folder is None:
        raise UserError(f"dataset '{info.name}' needs a folder; give --data-dir FOLDER")
    return folder


@register_dataset(FOLDER)
def _load(info: DatasetInfo, folder: Path | None, download: bool) -> StoredImages:
    place = given_folder(info, folder, download)
    inner = place / info.name  # where 'tutelage data prepare' puts it
    return scan_folders(info, inner if not (place / "train").exists() and inner.is_dir() else place)


@register_dataset(IMAGENET)
def _load_imagenet(info: DatasetInfo, folder: Path | None, download: bool) -> StoredImages:
    """An image folder, whose classes must be ImageNet's.

    By its name alone weights and records tell what their classes are.
    """
    found = _load(info, folder, download)
    odd = sorted(set(found.info.class_names) ^ set(info.class_names))
    if odd:
        what = "is missing" if odd[0] in info.class_names else "is none of them"
        raise UserError(
            f"{folder} is not {info.name}: class '{odd[0]}' {what} ({found.info.num_classes} classes for "
            f"{info.num_classes}); complete it, or give --data folder for images of other classes"
        )
    return found
