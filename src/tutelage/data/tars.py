"""Image folders packed into tar files, read as they lie, ImageNet's own archives among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from tutelage.data.catalog import Choice, DatasetInfo, register_dataset
from tutelage.data.folders import FOLDER, check_same_classes, find_list, given_folder, is_hidden, read_list
from tutelage.data.packed import Index, find_split, indexed, members, opened, packed
from tutelage.data.progress import advancing
from tutelage.data.sources import TEST_NAMES, TRAIN_NAMES, StoredImages
from tutelage.errors import UserError


def read_tars(info: DatasetInfo, folder: Path, choice: Choice) -> StoredImages:
    """Look into the archives of ``folder``: ``train.tar`` or ``train/*.tar``, and those for testing.

    An image's class is the first folder on the way to it inside the archive, as in an image folder; else the
    name of its archive, where that lies inside another one or in a folder with the others. Folders that hold
    the whole split, as one of its name, are no classes. Test images without classes are looked up in
    ``meta/val.txt``, as in an image folder. Rows are sorted as those of the unpacked folder would be.

    Raises:
        UserError: Archives are missing or damaged, images have no classes, or the classes differ.
    """
    train_name, train_archives = find_split(folder, choice.train, TRAIN_NAMES)
    test_name, test_archives = find_split(folder, choice.test, TEST_NAMES)
    train = _index(train_archives, folder, {}, {train_name, *TRAIN_NAMES})
    listed = find_list(folder)
    entries = {} if listed is None else dict(read_list(listed, len(train.names)))
    test = _index(test_archives, folder, entries, {test_name, *TEST_NAMES})
    if test.names:
        check_same_classes(train.names, test.names, train_archives[0], test_archives[0])
    found = dataclasses.replace(
        info, class_names=train.names, train_count=len(train.labels), test_count=len(test.labels)
    )
    return StoredImages(found, packed(train_archives, train), packed(test_archives, test))


class _Image(NamedTuple):
    """An image in an archive.

    Attributes:
        path: The folders on the way to it, from the one that may be a class, and its file.
        archive: Name of its archive, where that may be its class; else empty.
        name: In the archive.
        place: See `Index`.
    """

    path: tuple[str, ...]
    archive: str
    name: str
    place: tuple[int, int, int, int]

    @property
    def shown(self) -> str:
        """Its class, if it has one."""
        return self.path[0].removesuffix(".tar") if len(self.path) > 1 else self.archive


def _index(
    archives: Sequence[Path], folder: Path, listed: Mapping[str, int], split_names: Collection[str]
) -> Index:
    kind = {"tars": str(folder), "listed": sorted(listed.items()), "split": sorted(split_names)}
    return indexed(kind, archives, lambda: _read(archives, folder, listed, split_names))


def _read(
    archives: Sequence[Path], folder: Path, listed: Mapping[str, int], split_names: Collection[str]
) -> Index:
    found: list[_Image] = []
    with advancing("indexing archives", len(archives), in_bytes=False) as advance:
        for number, path in enumerate(archives):
            images = _images(path, number, may_be_class=path.parent != folder)
            # Unpacked side by side, archives often have a folder of their own name around everything.
            found += _below(images) if path.parent == folder and _around(images) == path.stem else images
            advance(1)
    while (around := _around(found)) and (around in split_names or all(len(i.path) > 2 for i in found)):
        found = _below(found)
    if not found:
        raise UserError(f"{archives[0]} has no images ({', '.join(IMG_EXTENSIONS)})")
    if listed and not any(image.shown for image in found):
        return _by_list({image.path[-1]: image.place for image in found}, listed, archives[0])
    bare = next((image.name for image in found if not image.shown), None)
    if bare is not None:
        raise UserError(
            f"{archives[0]}!{bare} lies in no class folder; pack each class's images in a folder of its own, "
            "or list test images with their class numbers in meta/val.txt"
        )
    found.sort(key=lambda image: (image.shown, "/".join(image.path), image.place))
    names = sorted({image.shown for image in found})
    numbers = {name: number for number, name in enumerate(names)}
    labels = [numbers[image.shown] for image in found]
    return Index(np.array([image.place for image in found]), np.array(labels), tuple(names))


def _images(archive: Path, number: int, may_be_class: bool) -> list[_Image]:
    """The images of an archive, its hidden files left out as those of a folder are."""
    found = []
    with opened(archive) as file:
        for name, header, start, size in members(file, nested=True):
            path = tuple(part for part in name.split("/") if part not in ("", ".", ".."))
            if Path(name).suffix.lower() in IMG_EXTENSIONS and not is_hidden(path):
                place = (number, header, start, size)
                found.append(_Image(path, archive.stem if may_be_class else "", name, place))
    return found


def _around(images: Sequence[_Image]) -> str:
    """The outermost folder of all the images; empty where there is no such."""
    first = {image.path[0] if len(image.path) > 1 else "" for image in images}
    return first.pop() if len(first) == 1 else ""


def _below(images: Sequence[_Image]) -> list[_Image]:
    return [image._replace(path=image.path[1:]) for image in images]


def _by_list(
    places: Mapping[str, tuple[int, int, int, int]], listed: Mapping[str, int], where: Path
) -> Index:
    missing = next((name for name in listed if name not in places), None)
    if missing is not None:
        raise UserError(f"meta/val.txt names {missing}, which is not in {where}; complete the archive")
    return Index(np.array([places[name] for name in listed]), np.array(list(listed.values())))


TAR = dataclasses.replace(
    FOLDER,
    name="tar",
    source="your own images: train.tar and val.tar with CLASS/*, or an archive for each class",
)


@register_dataset(TAR, chooses=True)
def _load(info: DatasetInfo, folder: Path | None, download: bool, choice: Choice) -> StoredImages:
    return read_tars(info, given_folder(info, folder, download), choice)
