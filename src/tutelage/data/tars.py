"""Image folders packed into tar files, read as they lie, ImageNet's own archives among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from tutelage.data.catalog import Choice, DatasetInfo, register_dataset
from tutelage.data.folders import FOLDER, check_same_classes, find_list, given_folder, read_list
from tutelage.data.packed import Index, find_split, indexed, members, opened, packed
from tutelage.data.progress import advancing
from tutelage.data.sources import TEST_NAMES, TRAIN_NAMES, StoredImages
from tutelage.errors import UserError


def read_tars(info: DatasetInfo, folder: Path, choice: Choice) -> StoredImages:
    """Look into the archives of ``folder``: ``train.tar`` or ``train/*.tar``, and those for testing.

    An image's class is the folder that it lies in, inside the archive; else the name of its archive, where
    that lies inside another one or in a folder with the others. Test images without classes are looked up in
    ``meta/val.txt``, as in an image folder. Rows are sorted as those of the unpacked folder would be.

    Raises:
        UserError: Archives are missing or damaged, images have no classes, or the classes differ.
    """
    _, train_archives = find_split(folder, choice.train, TRAIN_NAMES)
    _, test_archives = find_split(folder, choice.test, TEST_NAMES)
    train = _index(train_archives, folder, {})
    listed = find_list(folder)
    entries = {} if listed is None else dict(read_list(listed, len(train.names)))
    test = _index(test_archives, folder, entries)
    if test.names:
        check_same_classes(train.names, test.names, train_archives[0], test_archives[0])
    found = dataclasses.replace(
        info, class_names=train.names, train_count=len(train.labels), test_count=len(test.labels)
    )
    return StoredImages(found, packed(train_archives, train), packed(test_archives, test))


def _index(archives: Sequence[Path], folder: Path, listed: Mapping[str, int]) -> Index:
    kind = {"tars": str(folder), "listed": sorted(listed.items())}
    return indexed(kind, archives, lambda: _read(archives, folder, listed))


def _read(archives: Sequence[Path], folder: Path, listed: Mapping[str, int]) -> Index:
    found: list[tuple[str, str, tuple[int, int, int, int]]] = []
    with advancing("indexing archives", len(archives), in_bytes=False) as advance:
        for number, path in enumerate(archives):
            outside = "" if path.parent == folder else path.stem  # else it has the name of the split
            with opened(path) as file:
                for name, header, start, size in members(file, nested=True):
                    *inside, last = name.removeprefix("./").split("/")
                    if Path(last).suffix.lower() in IMG_EXTENSIONS and not last.startswith("."):
                        shown = inside[-1].removesuffix(".tar") if inside else outside
                        found.append((shown, name, (number, header, start, size)))
            advance(1)
    if not found:
        raise UserError(f"{archives[0]} has no images ({', '.join(IMG_EXTENSIONS)})")
    if listed and not any(shown for shown, _, _ in found):
        return _by_list({Path(name).name: place for _, name, place in found}, listed, archives[0])
    bare = next((name for shown, name, _ in found if not shown), None)
    if bare is not None:
        raise UserError(
            f"{archives[0]}!{bare} lies in no class folder; pack each class's images in a folder of its own, "
            "or list test images with their class numbers in meta/val.txt"
        )
    found.sort()
    names = sorted({shown for shown, _, _ in found})
    numbers = {name: number for number, name in enumerate(names)}
    labels = [numbers[shown] for shown, _, _ in found]
    return Index(np.array([place for _, _, place in found]), np.array(labels), tuple(names))


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
