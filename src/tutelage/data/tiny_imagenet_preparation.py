"""TinyImageNet's validation images put into class folders, beside an original that stays as it is."""

from __future__ import annotations

import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from tutelage.data.archives import reading, save, zip_files
from tutelage.data.catalog import DatasetInfo
from tutelage.data.download import md5_of
from tutelage.data.making import is_prepared, making
from tutelage.data.progress import advancing
from tutelage.errors import UserError

PREPARED = "tiny-imagenet"
"""What the prepared folder is called unless the user says otherwise."""
ANNOTATIONS = PurePosixPath("val/val_annotations.txt")
LISTS = ("wnids.txt", "words.txt")
"""Files that are taken over as they are, where they are there."""


class Original(ABC):
    """The dataset as it comes.

    Attributes:
        where: What messages call it.
        paths: Of all files, relative to the folder with ``train`` and ``val``.
    """

    where: Path
    paths: list[PurePosixPath]

    @abstractmethod
    def text(self, path: PurePosixPath) -> str:
        """Content of a text file."""

    @abstractmethod
    def put(self, path: PurePosixPath, target: Path) -> None:
        """Bring a file to ``target``, whose folder is made when missing."""


class OriginalFolder(Original):
    """An unpacked archive; files become hard links where the disk has them, else copies."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.paths = [
            PurePosixPath((Path(folder) / name).relative_to(where).as_posix())
            for folder, _, names in os.walk(where)
            for name in names
        ]

    def text(self, path: PurePosixPath) -> str:
        """See `Original`."""
        return (self.where / path).read_text(encoding="utf-8", errors="replace")

    def put(self, path: PurePosixPath, target: Path) -> None:
        """See `Original`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        source = (self.where / path).resolve()  # a link to a symbolic link would be one itself
        try:
            os.link(source, target)
        except OSError:  # another disk, or one without links; a full one refuses the copy too
            shutil.copyfile(source, target)


class OriginalZip(Original):
    """The archive itself."""

    def __init__(self, where: Path, opened: zipfile.ZipFile) -> None:
        self.where, self._opened = where, opened
        members = dict(zip_files(opened, where))
        roots = [path.parent.parent for path in members if path.parts[-2:] == ANNOTATIONS.parts]
        if not roots:
            raise UserError(f"{where} holds no {ANNOTATIONS}, so it is not {PREPARED}'s archive")
        root = min(roots, key=lambda path: len(path.parts))
        self._members = {
            path.relative_to(root): member for path, member in members.items() if path.is_relative_to(root)
        }
        self.paths = list(self._members)

    def text(self, path: PurePosixPath) -> str:
        """See `Original`."""
        return self._opened.read(self._members[path]).decode("utf-8", errors="replace")

    def put(self, path: PurePosixPath, target: Path) -> None:
        """See `Original`."""
        with self._opened.open(self._members[path]) as source:
            save(source, target)  # type: ignore[arg-type]  # IO[bytes], which is what a BinaryIO is


def prepare_tiny_imagenet(
    source: Path, target: Path, info: DatasetInfo, md5: str | None = None
) -> dict[str, Any]:
    """Make ``train/CLASS/images/*`` and ``val/CLASS/*`` out of the archive or the folder that it unpacks to.

    The unlabelled test images and the boxes are left out. ``target`` appears when it is whole.

    Args:
        source: The zip, its unpacked folder, or the one above that.
        target: The folder to make.
        info: Of the dataset; its classes and numbers of images are expected.
        md5: That a zip must have; None takes any.

    Returns:
        ``dataset``, ``folder``, ``classes``, ``train_images``, ``val_images`` and ``already``, which says
        that the folder was there before.

    Raises:
        UserError: ``source`` isn't whole or isn't the dataset, or ``target`` holds something else.
        TutelageError: The disk is full or something can't be read; nothing is left of ``target``.
    """
    result = {
        "dataset": info.name,
        "folder": str(target),
        "classes": info.num_classes,
        "train_images": info.train_count,
        "val_images": info.test_count,
    }
    if is_prepared(target, info):
        return {**result, "already": True}
    with _opened(source, info, md5) as original:
        plan = _plan(original, info)
        with making(target) as place, advancing("preparing", len(plan), in_bytes=False) as advance:
            for goal, path in plan.items():
                original.put(path, place / goal)
                advance(1)
    return {**result, "already": False}


@contextmanager
def _opened(source: Path, info: DatasetInfo, md5: str | None) -> Iterator[Original]:
    if source.is_dir():
        place = next(
            (place for place in (source, source / "tiny-imagenet-200") if (place / ANNOTATIONS).is_file()),
            None,
        )
        if place is None:
            raise UserError(
                f"{source} has no {ANNOTATIONS}, so it is not {info.name} as it is unpacked; give its zip or "
                "the folder tiny-imagenet-200"
            )
        yield OriginalFolder(place)
        return
    if not source.is_file():
        raise UserError(f"there is no {source}; give {info.name}'s zip or the folder that it unpacks to")
    if md5 is not None and md5_of(source) != md5:
        raise UserError(
            f"{source} is not {info.name}'s official archive or is damaged: its MD5 is not {md5}; fetch it "
            "anew, or add --no-checksums if it is meant to differ"
        )
    with reading(source), zipfile.ZipFile(source) as opened:
        yield OriginalZip(source, opened)


def _plan(original: Original, info: DatasetInfo) -> dict[PurePosixPath, PurePosixPath]:
    """Goal -> where it comes from, for every file.

    Raises:
        UserError: A class or images are missing, or the annotations don't fit the files.
    """
    known, there = set(info.class_names), set(original.paths)
    plan = {PurePosixPath(name): PurePosixPath(name) for name in LISTS if PurePosixPath(name) in there}
    train: Counter[str] = Counter()
    for path in original.paths:
        if path.parts[0] != "train" or len(path.parts) < 3 or path.suffix.lower() not in IMG_EXTENSIONS:
            continue
        if path.parts[1] not in known:
            raise UserError(f"'{path.parts[1]}' in {original.where}'s train is no class of {info.name}")
        train[path.parts[1]] += 1
        plan[path] = path
    val = _validation(original, known, there)
    plan |= val
    shown = Counter(goal.parts[1] for goal in val)
    for split, counts, expected in (("train", train, info.train_count), ("val", shown, info.test_count)):
        missing = next((name for name in info.class_names if not counts[name]), None)
        if missing is not None:
            raise UserError(
                f"{original.where} has no images of class '{missing}' in '{split}', so it is not whole; "
                "fetch it anew"
            )
        if counts.total() != expected:
            raise UserError(
                f"{original.where} has {counts.total()} images in '{split}' instead of {expected}, so it is "
                "not whole; fetch it anew"
            )
    return plan


def _validation(
    original: Original, known: set[str], there: set[PurePosixPath]
) -> dict[PurePosixPath, PurePosixPath]:
    """Goal -> where it comes from, for the validation images, by the lines of the annotations."""
    plan: dict[PurePosixPath, PurePosixPath] = {}
    for number, line in enumerate(original.text(ANNOTATIONS).splitlines(), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        path = PurePosixPath("val/images") / name
        if wnid not in known or "/" in name:
            raise UserError(
                f"line {number} of {ANNOTATIONS} in {original.where} is no file with a known class: {line!r}"
            )
        if path not in there:
            raise UserError(
                f"{ANNOTATIONS} in {original.where} names {path}, which is not there; fetch it anew"
            )
        plan[PurePosixPath("val") / wnid / name] = path
    return plan
