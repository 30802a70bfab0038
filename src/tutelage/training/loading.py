"""A run's images: read, split, augmented and normalised as its recipe says."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tutelage.data import (
    AutoAugment,
    Choice,
    ColorJitter,
    CropFlip,
    DatasetInfo,
    ImageData,
    Mixing,
    Policy,
    RandAugment,
    RandomErasing,
    ResidentData,
    ResizedViews,
    Share,
    StoredImages,
    StreamData,
    Triple,
    Views,
    few_shot_indices,
    is_remembered,
    load_dataset,
    validation_split,
)
from tutelage.errors import UserError
from tutelage.recipes import Recipe
from tutelage.recipes.schema import DataRecipe
from tutelage.training.distributed import first_here, launched_here, rank, world
from tutelage.training.preprocessing import normalisation

DATA_FOLDER = Path("data")
MOST_WORKERS = 16
"""More decoding processes than this are asked for by name."""


def load_data(recipe: Recipe, device: torch.device, dataset: Any = None) -> ImageData:
    """This process's share of the data, split, augmented and normalised as the recipe says, on ``device``.

    Args:
        recipe: What to load and how.
        device: To hold or receive it.
        dataset: What `load_dataset` gives; None loads it.

    Raises:
        UserError: Unknown or unreadable data, an unknown policy, or batches that can't be made.
    """
    data = _whole_data(recipe, device, dataset)
    data.mixing = mixing(recipe, data.info.num_classes)
    data.repeats, data.drop_last = recipe.data.repeats, recipe.data.drop_last
    data.share = Share(rank(), world(), paired=data.mixing is not None)
    data.steps_per_epoch(recipe.data.batch_size)  # refuses what leaves none
    return data


def _whole_data(recipe: Recipe, device: torch.device, dataset: Any) -> ImageData:
    wanted = recipe.data
    mean, std = normalisation(recipe)
    wanted_policy = policy(wanted, mean)  # refuses before anything is loaded
    folder = Path(wanted.dir) if wanted.dir is not None else DATA_FOLDER
    if dataset is None:
        with first_here() if wanted.download or is_remembered(wanted.name) else nullcontext():
            dataset = load_dataset(wanted.name, folder, wanted.download, choice(wanted))
    train, val = split(dataset.train_labels, wanted.few_ratio, wanted.val_fraction)
    common: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "train_indices": train,
        "val_indices": val,
        "channels_last": recipe.runtime.channels_last,
        "policy": wanted_policy,
        "erasing": RandomErasing(wanted.erase) if wanted.erase else None,
    }
    if isinstance(dataset, StoredImages):
        return StreamData(
            dataset,
            device,
            wanted.image_size,
            crop_share=wanted.crop_share,
            interpolation=wanted.interpolation,
            augment=bool(wanted.augment),
            workers=decoders(recipe.runtime.workers),
            **common,
        )
    augment = resident_views(dataset.info, wanted)
    resident: Callable[..., ImageData] = getattr(dataset, "hand_out", partial(ResidentData, dataset))
    return resident(device, augment=augment, **common)


def decoders(wanted: int | None) -> int:
    """Processes that decode images for this one: as many as wanted, or its share of the processors.

    Args:
        wanted: ``runtime.workers``.
    """
    if wanted is not None:
        return wanted
    return max(min((os.cpu_count() or 1) // launched_here(), MOST_WORKERS), 1)


def choice(wanted: DataRecipe) -> Choice:
    """What to take of a dataset that leaves a choice."""
    return Choice(wanted.image_column, wanted.label_column, wanted.train_split, wanted.test_split)


def resident_views(info: DatasetInfo, wanted: DataRecipe) -> Views:
    """How images in memory are cut and, where the recipe asks for another size, resized."""
    size = info.image_size
    if wanted.image_size not in (None, size):
        return ResizedViews(
            size,
            wanted.image_size,
            wanted.crop_share,
            wanted.interpolation,
            flip=info.flip,
            vary=bool(wanted.augment),
        )
    return info.augment if wanted.augment else CropFlip(size, 0, False)


def policy(wanted: DataRecipe, mean: Triple) -> Policy | None:
    """What is done to cut training images; None for nothing.

    Raises:
        UserError: The recipe names no known policy.
    """
    if wanted.augment == "autoaugment":
        return AutoAugment()
    if isinstance(wanted.augment, str):
        return RandAugment.parse(wanted.augment, mean)
    return ColorJitter(wanted.color_jitter) if wanted.color_jitter else None


def mixing(recipe: Recipe, classes: int) -> Mixing | None:
    """How the recipe mixes training batches; None for not at all.

    Raises:
        UserError: The processes can't share a batch such that partners stay together.
    """
    wanted = recipe.data
    if not (wanted.mixup or wanted.cutmix):
        return None
    if wanted.batch_size % (2 * world()) and world() > 1:
        raise UserError(
            f"{world()} processes share a mixed batch in pairs, so data.batch_size {wanted.batch_size} must "
            f"be a multiple of {2 * world()}; change it, or drop data.mixup and data.cutmix"
        )
    return Mixing(
        classes,
        wanted.mixup,
        wanted.cutmix,
        wanted.mix_probability,
        wanted.mix_switch,
        wanted.mix_off_epoch,
    )


def split(
    labels: torch.Tensor, few_ratio: float, val_fraction: float
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Rows of the training images used for training and for validation.

    The validation part is taken out first, so that it is the same for every few-shot ratio.

    Returns:
        Two int64 index tensors; None for "all" and for "none".
    """
    train: torch.Tensor | None = None
    val: torch.Tensor | None = None
    if val_fraction > 0:
        train, val = validation_split(labels, val_fraction)
    if few_ratio < 1:
        kept = few_shot_indices(labels if train is None else labels[train], few_ratio)
        train = kept if train is None else train[kept]
    return train, val


def image_size(data: ImageData) -> tuple[int, int]:
    """(H, W) of the images the networks get."""
    return data.info.image_size, data.info.image_size
