"""STL-10 from its binary files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tutelage.data.catalog import STL10_NORMALISATION, Dataset, DatasetInfo, register_dataset
from tutelage.data.download import RemoteFile
from tutelage.data.official import (
    OfficialFile,
    check_size,
    checked_bytes,
    fetch_unless_sound,
    folder_asked_for,
    locate,
)
from tutelage.errors import UserError


@dataclass(frozen=True)
class Stl10Layout:
    """How the labelled part of the dataset lies on disk.

    Attributes:
        folder: Name that the archive gives to the folder.
        archive: The official archive, most of which is the unlabelled part.
        train: Files of the training images and of their labels.
        test: Files of the test images and of their labels.
    """

    folder: str
    archive: RemoteFile
    train: tuple[OfficialFile, OfficialFile]
    test: tuple[OfficialFile, OfficialFile]

    @property
    def files(self) -> tuple[OfficialFile, ...]:
        """The files that are needed."""
        return (*self.train, *self.test)


_NAMES = "airplane bird car cat deer dog horse monkey ship truck"
SIDE = 96
"""Of the images, in pixels."""
LAYOUT = Stl10Layout(
    folder="stl10_binary",
    archive=RemoteFile(
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb"
    ),
    train=(
        OfficialFile("train_X.bin", 138240000, "918c2871b30a85fa023e0c44e0bee87f"),
        OfficialFile("train_y.bin", 5000, "5a34089d4802c674881badbb80307741"),
    ),
    test=(
        OfficialFile("test_X.bin", 221184000, "7f263ba9f9e0b06b93213547f721ac82"),
        OfficialFile("test_y.bin", 8000, "36f9794fa4beb8a2c72628de14fa638e"),
    ),
)


@register_dataset(
    DatasetInfo(
        name="stl10",
        class_names=tuple(_NAMES.split()),
        image_size=SIDE,
        normalisation=STL10_NORMALISATION,
        train_count=5000,
        test_count=8000,
        padding=12,
        flip=True,
        source="Coates, Lee and Ng, AISTATS 2011 (cs.stanford.edu/~acoates/stl10); images from ImageNet",
        licence="none stated by the authors; ImageNet's terms (non-commercial research) for the images",
    )
)
def _load(info: DatasetInfo, folder: Path | None, download: bool) -> Dataset:
    return load_stl10(info, LAYOUT, folder, download)


def load_stl10(info: DatasetInfo, layout: Stl10Layout, folder: Path | None, download: bool) -> Dataset:
    """Read the labelled images of STL-10, checking the MD5 of every file.

    Args:
        info: Of the dataset.
        layout: The files to expect.
        folder: The folder of the binary files or the one above it.
        download: Fetch the official archive and unpack the labelled part when a file is missing or damaged.

    Raises:
        UserError: A file is missing, truncated, corrupt, or not what it should be.
        TutelageError: The download failed.
    """
    folder = folder_asked_for(info.name, layout.folder, folder)
    if download:
        fetch_unless_sound(layout.archive, layout.folder, layout.files, folder)
    try:
        place = locate(info.name, layout.folder, layout.files, folder)
        for file in layout.files:
            check_size(place / file.name, file)
        return Dataset(info, *_split(place, layout.train), *_split(place, layout.test))
    except OSError as error:
        raise UserError(
            f"can't read {error.filename or folder}: {error.strerror or error}; check its permissions"
        ) from error


def _split(place: Path, files: tuple[OfficialFile, OfficialFile]) -> tuple[Tensor, Tensor]:
    """Images `[n, 3, 96, 96]` uint8 and labels `[n]` int64; in the files column by column, and from 1."""
    images, labels = (np.frombuffer(checked_bytes(place, file), np.uint8) for file in files)
    if len(images) != len(labels) * 3 * SIDE * SIDE:
        raise UserError(
            f"{place / files[0].name} has {len(images)} bytes, which is not {3 * SIDE * SIDE} for each of "
            f"the {len(labels)} labels in {files[1].name}"
        )
    by_column = torch.from_numpy(images.copy()).view(-1, 3, SIDE, SIDE)
    return by_column.transpose(2, 3).contiguous(), torch.from_numpy(labels.astype(np.int64)) - 1
