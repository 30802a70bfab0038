"""The named datasets: what is known about each, and how to load it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tutelage.data.augment import CropFlip
from tutelage.errors import UserError, nearest

Triple = tuple[float, float, float]


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel, of images scaled to 0..1."""

    mean: Triple
    std: Triple


CIFAR10_NORMALISATION = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
# RepDistiller, mdistiller, PACKD, HSAKD and DPCD.
CIFAR100_NORMALISATION = Normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
# OFA-KD and PAT differ from the others in the last digit.
CIFAR100_OFA_NORMALISATION = Normalisation((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
# Also used for TinyImageNet by the linear evaluations of PACKD and HSAKD.
IMAGENET_NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STL10_NORMALISATION = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a dataset that hold without its files.

    Attributes:
        name: As asked for on the command line.
        class_names: In the order of the class numbers.
        image_size: Side of the square images, in pixels.
        normalisation: The customary mean and standard deviation.
        train_count: Number of training images.
        test_count: Number of test images.
        padding: Customary padding of the random crop, in pixels.
        flip: Whether a mirrored image keeps its class; a mirrored digit does not.
        source: Who made it and where it is found.
        licence: What its makers say about use.
    """

    name: str
    class_names: tuple[str, ...]
    image_size: int
    normalisation: Normalisation
    train_count: int
    test_count: int
    padding: int
    flip: bool
    source: str
    licence: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def mean(self) -> Triple:
        return self.normalisation.mean

    @property
    def std(self) -> Triple:
        return self.normalisation.std

    @property
    def augment(self) -> CropFlip:
        """The customary augmentation, with the flip only where it is label-safe."""
        return CropFlip(self.image_size, self.padding, self.flip)


@dataclass(frozen=True)
class Dataset:
    """A dataset in memory.

    Attributes:
        info: What is known about it.
        train_images: `[N, 3, H, W]` uint8.
        train_labels: `[N]` int64 in 0..num_classes - 1.
        test_images: `[M, 3, H, W]` uint8.
        test_labels: `[M]` int64.

    Raises:
        UserError: The tensors do not have these shapes, types or ranges.
    """

    info: DatasetInfo
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def __post_init__(self) -> None:
        side = self.info.image_size
        splits = {
            "train": (self.train_images, self.train_labels),
            "test": (self.test_images, self.test_labels),
        }
        for split, (images, labels) in splits.items():
            where = f"the {split} part of dataset {self.info.name}"
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, side, side):
                raise UserError(
                    f"{where} must hold uint8 images of shape [N, 3, {side}, {side}], "
                    f"got {images.dtype} {tuple(images.shape)}"
                )
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
                raise UserError(
                    f"{where} must hold one int64 label for each of its {len(images)} images (at least one), "
                    f"got {labels.dtype} {tuple(labels.shape)}"
                )
            lowest, highest = int(labels.min()), int(labels.max())
            if lowest < 0 or highest >= self.info.num_classes:
                raise UserError(
                    f"{where} has labels {lowest}..{highest}, "
                    f"but the classes are 0..{self.info.num_classes - 1}"
                )


L = TypeVar("L", bound="Loader")
Loader = Callable[[DatasetInfo, Path | None, bool], Any]
"""Gives a `Dataset`, or `folders.ImageFolders` where the images stay in their files."""
_REGISTRY: dict[str, tuple[DatasetInfo, Loader]] = {}


def register_dataset(info: DatasetInfo) -> Callable[[L], L]:
    """Make a dataset known by its name.

    The decorated function is called with the info, the user's folder (or None) and whether it may download.

    Args:
        info: What is known without loading.

    Raises:
        ValueError: The name is taken.
    """

    def register(loader: L) -> L:
        if info.name in _REGISTRY:
            raise ValueError(f"a dataset named {info.name!r} exists already")
        _REGISTRY[info.name] = (info, loader)
        return loader

    return register


def dataset_names() -> list[str]:
    """Names of all known datasets, sorted."""
    return sorted(_REGISTRY)


def dataset_info(name: str) -> DatasetInfo:
    """Facts about the named dataset, without loading it.

    Raises:
        UserError: No dataset has this name.
    """
    return _entry(name)[0]


def load_dataset(name: str, folder: Path | None = None, download: bool = False) -> Any:
    """Load a dataset into memory, or list its files where it is one of image files.

    Args:
        name: One of `dataset_names()`.
        folder: Where its files are; not needed for datasets that are made or embedded.
        download: Fetch the files into `folder` when they are missing or damaged there.

    Returns:
        A `Dataset` or `folders.ImageFolders`.

    Raises:
        UserError: The name is unknown, or the files are missing, damaged or not what they claim to be.
        TutelageError: A download failed.
    """
    info, loader = _entry(name)
    return loader(info, None if folder is None else Path(folder), download)


def _entry(name: str) -> tuple[DatasetInfo, Loader]:
    if name not in _REGISTRY:
        raise UserError(
            f"there is no dataset {name!r}{nearest(name, _REGISTRY)}; known are {', '.join(dataset_names())}"
        )
    return _REGISTRY[name]
