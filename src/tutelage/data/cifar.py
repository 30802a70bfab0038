"""CIFAR-10 and CIFAR-100 from their canonical Python-version folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tutelage.data.catalog import (
    CIFAR10_NORMALISATION,
    CIFAR100_NORMALISATION,
    Dataset,
    DatasetInfo,
    register_dataset,
)
from tutelage.data.download import RemoteFile
from tutelage.data.official import (
    OfficialFile,
    check_size,
    checked_bytes,
    fetch_unless_sound,
    folder_asked_for,
    locate,
)
from tutelage.data.safe_pickle import read_pickle
from tutelage.errors import UserError


@dataclass(frozen=True)
class CifarLayout:
    """How one of the two datasets lies on disk.

    Attributes:
        folder: Name that the archive gives to the folder.
        url: Of the official archive.
        archive_md5: Of the archive.
        train: Files of the training images, in order.
        test: File of the test images.
        meta: File of the class names; only checked, as the names are known.
        label_key: Key of the labels in the pickled dicts.
    """

    folder: str
    url: str
    archive_md5: str
    train: tuple[OfficialFile, ...]
    test: OfficialFile
    meta: OfficialFile
    label_key: bytes

    @property
    def files(self) -> tuple[OfficialFile, ...]:
        return (self.meta, self.test, *self.train)


CIFAR10_LAYOUT = CifarLayout(
    folder="cifar-10-batches-py",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    train=(
        OfficialFile("data_batch_1", 31035704, "c99cafc152244af753f735de768cd75f"),
        OfficialFile("data_batch_2", 31035320, "d4bba439e000b95fd0a9bffe97cbabec"),
        OfficialFile("data_batch_3", 31035999, "54ebc095f3ab1f0389bbae665268c751"),
        OfficialFile("data_batch_4", 31035696, "634d18415352ddfa80567beed471001a"),
        OfficialFile("data_batch_5", 31035623, "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    test=OfficialFile("test_batch", 31035526, "40351d587109b95175f43aff81a1287e"),
    meta=OfficialFile("batches.meta", 158, "5ff9c542aee3614f3951f8cda6e48888"),
    label_key=b"labels",
)
CIFAR100_LAYOUT = CifarLayout(
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    train=(OfficialFile("train", 155249918, "16019d7e3df5f24257cddd939b257f8d"),),
    test=OfficialFile("test", 31049707, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    meta=OfficialFile("meta", 1473, "7973b15100ade9c7d40fb424638fde48"),
    label_key=b"fine_labels",
)
_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
    leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
_SOURCE = (
    "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009 "
    "(www.cs.toronto.edu/~kriz/cifar.html)"
)


@register_dataset(
    DatasetInfo(
        name="cifar10",
        class_names=tuple(_CIFAR10_NAMES.split()),
        image_size=32,
        normalisation=CIFAR10_NORMALISATION,
        train_count=50000,
        test_count=10000,
        padding=4,
        flip=True,
        source=_SOURCE,
        licence="none stated by the authors",
    )
)
def _cifar10(info: DatasetInfo, folder: Path | None, download: bool) -> Dataset:
    return load_cifar(info, CIFAR10_LAYOUT, folder, download)


@register_dataset(
    DatasetInfo(
        name="cifar100",
        class_names=tuple(_CIFAR100_NAMES.split()),
        image_size=32,
        normalisation=CIFAR100_NORMALISATION,
        train_count=50000,
        test_count=10000,
        padding=4,
        flip=True,
        source=_SOURCE,
        licence="none stated by the authors",
    )
)
def _cifar100(info: DatasetInfo, folder: Path | None, download: bool) -> Dataset:
    return load_cifar(info, CIFAR100_LAYOUT, folder, download)


def load_cifar(info: DatasetInfo, layout: CifarLayout, folder: Path | None, download: bool) -> Dataset:
    """Read a canonical CIFAR folder, checking the MD5 of every file.

    Args:
        info: Of the dataset; its number of classes and image size are expected in the files.
        layout: The files to expect.
        folder: The canonical folder itself or the one above it.
        download: Fetch and unpack the official archive when a file is missing or damaged.

    Raises:
        UserError: A file is missing, truncated, corrupt, or not the pickled arrays it should be.
        TutelageError: The download failed.
    """
    folder = folder_asked_for(info.name, layout.folder, folder)
    if download:
        archive = RemoteFile(layout.url, layout.archive_md5)
        fetch_unless_sound(archive, layout.folder, layout.files, folder)
    try:
        place = locate(info.name, layout.folder, layout.files, folder)
        for file in layout.files:
            check_size(place / file.name, file)
        checked_bytes(place, layout.meta)
        test_images, test_labels = _read_file(info, layout, place, layout.test)
        train = [_read_file(info, layout, place, file) for file in layout.train]
    except OSError as error:
        raise UserError(
            f"can't read {error.filename or folder}: {error.strerror or error}; check its permissions"
        ) from error
    train_images = train[0][0] if len(train) == 1 else torch.cat([images for images, _ in train])
    return Dataset(info, train_images, torch.cat([labels for _, labels in train]), test_images, test_labels)


def _read_file(
    info: DatasetInfo, layout: CifarLayout, place: Path, file: OfficialFile
) -> tuple[Tensor, Tensor]:
    """Images `[n, 3, H, W]` uint8 and labels `[n]` int64 of one file."""
    content = read_pickle(checked_bytes(place, file), str(place / file.name))
    pixels, labels = content.get(b"data"), content.get(layout.label_key)
    side = info.image_size
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3 * side * side:
        raise UserError(
            f"{place / file.name} is not a {info.name} file (no pixel rows of {3 * side * side} bytes)"
        )
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise UserError(
            f"{place / file.name} is not a {info.name} file (no list of {layout.label_key.decode()})"
        )
    images = torch.from_numpy(pixels.reshape(-1, 3, side, side).copy())
    return images, torch.tensor(labels, dtype=torch.int64)
