"""Images in folders: which files there are, and what each shows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from tutelage.data.catalog import IMAGENET_NORMALISATION, DatasetInfo, register_dataset
from tutelage.errors import UserError

TEST_NAMES = ("test", "val", "validation")
LISTS = ("meta", "metas")
"""Folders that hold ``val.txt`` where the validation images lie in one flat folder."""


@dataclass(frozen=True)
class Files:
    """Image files and what they show.

    Attributes:
        paths: In the order of the rows.
        labels: `[n]` int64.
    """

    paths: tuple[str, ...]
    labels: Tensor


@dataclass(frozen=True)
class ImageFolders:
    """A dataset of image files, too large or too varied to be held in memory.

    Attributes:
        info: With the classes and numbers of images that were found.
        train: Training images, class by class.
        test: Test images.
    """

    info: DatasetInfo
    train: Files
    test: Files

    @property
    def train_labels(self) -> Tensor:
        """`[n]` int64 labels of the training images."""
        return self.train.labels


def scan_folders(info: DatasetInfo, folder: Path) -> ImageFolders:
    """Look for ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val``, or ``validation``).

    The classes are the folders of ``train`` in alphabetical order. A flat ``val`` whose labels stand in
    ``meta/val.txt`` (lines of file name and class number) is read as well, ImageNet's layout in PACKD.

    Raises:
        UserError: A part is missing or empty, its classes differ, or the list doesn't fit the files.
    """
    train_folder = folder / "train"
    if not train_folder.is_dir():
        raise UserError(
            f"there is no folder {train_folder}; dataset '{info.name}' is read from --data-dir FOLDER with "
            "FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg"
        )
    test_folder = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    if test_folder is None:
        raise UserError(
            f"{folder} has no test images; put them into {folder / 'val'}/CLASS, with the classes of 'train'"
        )
    classes = _class_names(train_folder)
    train = _by_class(train_folder, classes)
    listed = next(
        (folder / name / "val.txt" for name in LISTS if (folder / name / "val.txt").is_file()), None
    )
    flat = not any(entry.is_dir() for entry in test_folder.iterdir())
    if flat and listed is not None:
        test = _by_list(test_folder, listed, len(classes))
    else:
        there = _class_names(test_folder)
        odd = sorted(set(there) ^ set(classes))
        if odd:
            where = test_folder if odd[0] in classes else train_folder
            raise UserError(
                f"class '{odd[0]}' has no folder in {where}, but in the other part ({len(odd)} classes "
                "differ); both parts need the same classes"
            )
        test = _by_class(test_folder, classes)
    found = dataclasses.replace(
        info, class_names=classes, train_count=len(train.paths), test_count=len(test.paths)
    )
    return ImageFolders(found, train, test)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not names:
        raise UserError(f"{folder} has no class folders; put each class's images into a folder of its own")
    return names


def _by_class(folder: Path, classes: tuple[str, ...]) -> Files:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        here = sorted(str(p) for p in (folder / name).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
        if not here:
            raise UserError(f"{folder / name} has no images ({', '.join(IMG_EXTENSIONS)})")
        paths += here
        labels += [label] * len(here)
    return Files(tuple(paths), torch.tensor(labels))


def _by_list(folder: Path, listed: Path, classes: int) -> Files:
    paths: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdigit() or int(label) >= classes:
            raise UserError(
                f"line {number} of {listed} is no file name with a class number below {classes}: {line!r}"
            )
        paths.append(str(folder / name))
        labels.append(int(label))
    missing = next((path for path in paths if not Path(path).is_file()), None)
    if missing is not None:
        raise UserError(f"{listed} names {missing}, which is not there; complete {folder}")
    return Files(tuple(paths), torch.tensor(labels, dtype=torch.int64))


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


@register_dataset(IMAGENET)
@register_dataset(FOLDER)
def _load(info: DatasetInfo, folder: Path | None, download: bool) -> ImageFolders:
    if download:
        raise UserError(f"dataset '{info.name}' can't be downloaded; put its images into --data-dir FOLDER")
    if folder is None:
        raise UserError(f"dataset '{info.name}' needs a folder; give --data-dir FOLDER")
    return scan_folders(info, folder)
