"""The named datasets: what is known about each, and how to load it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Choice:
    """What to take from a dataset whose files say it in several ways; None leaves it to the dataset's rules.

    Attributes:
        image: Column, or kind of file, that holds the images.
        label: Column, or field of a sample's JSON, that holds the class numbers.
        train: Split, or pattern of files, to train on.
        test: Likewise, to test on.
    """

    image: str | None = None
    label: str | None = None
    train: str | None = None
    test: str | None = None


L = TypeVar("L", bound="Loader")
Loader = Callable[..., Any]
"""Gives a `Dataset`, or `sources.StoredImages` where the images stay where they are stored."""


class _Entry(NamedTuple):
    info: DatasetInfo
    loader: Loader
    chooses: bool
    family: bool


_REGISTRY: dict[str, _Entry] = {}


def register_dataset(info: DatasetInfo, chooses: bool = False, family: bool = False) -> Callable[[L], L]:
    """Make a dataset known by its name.

    The decorated function is called with the info, the user's folder (or None) and whether it may download.

    Args:
        info: What is known without loading.
        chooses: Whether the function takes a `Choice` as well.
        family: Whether NAME/ANYTHING are such datasets too, told apart by the info's name.

    Raises:
        ValueError: The name is taken.
    """

    def register(loader: L) -> L:
        if info.name in _REGISTRY:
            raise ValueError(f"a dataset named {info.name!r} exists already")
        _REGISTRY[info.name] = _Entry(info, loader, chooses, family)
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
    return _entry(name).info


def is_remembered(name: str) -> bool:
    """Whether loading it once makes loading it again cheap, so that one of many processes does it first.

    Raises:
        UserError: No dataset has this name.
    """
    return _entry(name).chooses


def load_dataset(
    name: str, folder: Path | None = None, download: bool = False, choice: Choice | None = None
) -> Any:
    """Load a dataset into memory, or list its images where they stay where they are stored.

    Args:
        name: One of `dataset_names()`, or a member of a family, as ``hfds/NAME``.
        folder: Where its files are; not needed for datasets that are made or embedded.
        download: Fetch the files into `folder` when they are missing or damaged there.
        choice: What to take, where the dataset leaves a choice.

    Returns:
        A `Dataset` or `sources.StoredImages`.

    Raises:
        UserError: The name is unknown, the files are missing, damaged or not what they claim to be, or there
            is no choice.
        TutelageError: A download failed.
    """
    entry, wanted = _entry(name), choice or Choice()
    place = None if folder is None else Path(folder)
    if entry.chooses:
        return entry.loader(entry.info, place, download, wanted)
    if wanted != Choice():
        choosers = ", ".join(known for known, other in _REGISTRY.items() if other.chooses)
        raise UserError(
            f"dataset '{name}' has no columns or splits to choose from; drop data.image_column, "
            f"data.label_column, data.train_split and data.test_split, which are for {choosers}"
        )
    return entry.loader(entry.info, place, download)


def _entry(name: str) -> _Entry:
    if name in _REGISTRY:
        return _REGISTRY[name]
    family = _REGISTRY.get(name.partition("/")[0])
    if family is not None and family.family:
        return family._replace(info=replace(family.info, name=name))
    raise UserError(
        f"there is no dataset {name!r}{nearest(name, _REGISTRY)}; known are {', '.join(dataset_names())}"
    )
