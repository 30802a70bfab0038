"""Datasets whose official files have to be brought into another form before they are read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage.data.catalog import dataset_info
from tutelage.data.imagenet_preparation import prepare_imagenet
from tutelage.data.tiny_imagenet import ARCHIVE
from tutelage.data.tiny_imagenet_preparation import prepare_tiny_imagenet
from tutelage.errors import UserError, nearest
from tutelage.files import named_path

DATA_FOLDER = Path("data")
"""Where datasets are looked for unless the user says otherwise."""


def _tiny_imagenet(source: Path, target: Path, checksums: bool) -> dict[str, Any]:
    md5 = ARCHIVE.md5 if checksums else None
    return prepare_tiny_imagenet(source, target, dataset_info("tiny-imagenet"), md5)


def _imagenet(source: Path, target: Path, checksums: bool) -> dict[str, Any]:
    return prepare_imagenet(source, target, dataset_info("imagenet"), checksums=checksums)


PREPARATIONS: dict[str, Callable[[Path, Path, bool], dict[str, Any]]] = {
    "imagenet": _imagenet,
    "tiny-imagenet": _tiny_imagenet,
}


def prepare_data(
    name: str, source: str | Path, to: str | Path | None = None, *, checksums: bool = True
) -> dict[str, Any]:
    """Bring a dataset's official files into class folders; the files themselves stay as they are.

    Args:
        name: "imagenet" or "tiny-imagenet".
        source: For ImageNet the folder with its three tar files, for TinyImageNet its zip or unpacked folder.
        to: The folder to make; None makes ``data/NAME``, where the dataset is looked for by itself.
        checksums: Whether archives must be the official ones, by size and MD5.

    Returns:
        ``dataset``, ``folder``, ``classes``, ``train_images``, ``val_images``, ``already`` (it was there
        before) and ``seconds``.

    Raises:
        UserError: There is nothing to prepare, or the files are missing, damaged or others.
        TutelageError: The disk is full or something can't be read.
    """
    if name not in PREPARATIONS:
        raise UserError(
            f"there is no preparation of '{name}'{nearest(name, PREPARATIONS)}; it exists for "
            f"{' and '.join(PREPARATIONS)}, the other datasets are read as they are"
        )
    began = time.perf_counter()
    target = named_path(to) if to is not None else DATA_FOLDER / name
    result = PREPARATIONS[name](Path(source), target, checksums)
    return {**result, "seconds": round(time.perf_counter() - began, 1)}
