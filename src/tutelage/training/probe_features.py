"""The features of a frozen network: computed once where the images allow it, else anew every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.data import (
    CropFlip,
    Dataset,
    ImageData,
    ResidentData,
    ResizedViews,
    StreamData,
    Views,
    few_shot_indices,
    load_dataset,
)
from tutelage.models.network import Network
from tutelage.training.loading import DATA_FOLDER, decoders
from tutelage.training.preprocessing import RGB
from tutelage.training.probe_config import ProbeData, ProbeRecipe

PIECE = 4096
"""Rows of cached features that are put in order at a time."""


class Features(NamedTuple):
    """Features of a split.

    Attributes:
        values: `[V, N, D]` float32: as tested, and where V is 2 mirrored.
        targets: `[N]` int64.
        rows: `[N]` int64, which images of the split; unreadable ones are left out.
    """

    values: Tensor
    targets: Tensor
    rows: Tensor


def load_images(recipe: ProbeRecipe, size: int, given: tuple[RGB, RGB], device: torch.device) -> ImageData:
    """The dataset, resized, normalised and, where the probe is on random crops, varied.

    Args:
        recipe: Of the probe.
        size: Side of the images in pixels.
        given: Mean and std of the normalisation.
        device: Where batches go.
    """
    wanted = recipe.data
    folder = Path(wanted.dir) if wanted.dir is not None else DATA_FOLDER
    dataset = load_dataset(wanted.name, folder, download=wanted.download)
    few = wanted.few_ratio < 1
    common: dict[str, Any] = {
        "mean": given[0],
        "std": given[1],
        "train_indices": few_shot_indices(dataset.train_labels, wanted.few_ratio) if few else None,
    }
    varied = wanted.views == "resized-crop"
    if isinstance(dataset, Dataset):
        return ResidentData(dataset, device, augment=_views(dataset, wanted, size), **common)
    return StreamData(
        dataset,
        device,
        size,
        augment=varied,
        crop_share=wanted.crop_share,
        interpolation=wanted.interpolation,
        workers=decoders(recipe.runtime.workers),
        **common,
    )


def _views(dataset: Dataset, wanted: ProbeData, size: int) -> Views:
    side, varied = dataset.info.image_size, wanted.views == "resized-crop"
    if not varied and size == side and wanted.crop_share == 1:
        return CropFlip(side, 0, False)
    return ResizedViews(
        side, size, wanted.crop_share, wanted.interpolation, flip=dataset.info.flip, vary=varied
    )


class Backbone:
    """A network that nothing changes, as a source of features.

    Attributes:
        width: D, of the pooled features.
        flips: Whether features of mirrored images belong to the training images.
    """

    def __init__(self, network: Network, data: ImageData, recipe: ProbeRecipe, width: int) -> None:
        """Args:
        network: Frozen, in evaluation mode, asked for its pooled features.
        data: The images.
        recipe: Of the probe.
        width: Of the pooled features.
        """
        self._network, self._data, self._recipe = network, data, recipe
        self.width = width
        self.flips = recipe.data.views == "flip" and data.info.flip

    @property
    def enumerable(self) -> bool:
        """Whether the training images come in so few views that all features can be computed once."""
        return self._recipe.data.views != "resized-crop"

    def bytes(self, split: str) -> int:
        """Memory that the features of a split take."""
        views = 2 if self.flips and split == "train" else 1
        return views * self._data.size(split) * self.width * 4

    @torch.no_grad()
    def pooled(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` -> features `[B, D]`, float32."""
        pooled = self._network(images).pooled
        assert pooled is not None  # it was asked for
        return pooled.float()

    def features(self, split: str) -> Features:
        """The features of a whole split, in the order of its images."""
        flips = self.flips and split == "train"
        total, device = self._data.size(split), self._data.device
        values = torch.empty(1 + flips, total, self.width, device=device)
        targets, rows = torch.empty(2, total, dtype=torch.int64, device=device)
        at = 0
        for batch in self._data.eval_batches(split, self._recipe.runtime.feature_batch):
            place = slice(at, at + len(batch.index))
            for view, images in enumerate([batch.images, batch.images.flip(3)][: 1 + flips]):
                values[view, place] = self.pooled(images)
            targets[place], rows[place] = batch.targets, batch.index
            at += len(batch.index)
        return Features(values[:, :at], targets[:at], rows[:at])

    def epoch(self, epoch: int, multiple: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features `[n, D]` and targets `[n]` of one epoch's training images, computed now, in its order.

        Args:
            epoch: From 0.
            multiple: Of how many rows a piece is; the last has what is left.
        """
        seed, device = self._recipe.seed, self._data.device
        size = max(self._recipe.runtime.feature_batch // multiple, 1) * multiple
        mirrored = _coins(seed, epoch, self._data.train_size, device) if self.flips else None
        for batch in self._data.train_batches(epoch, seed, size):
            images = batch.images
            if mirrored is not None:
                images = torch.where(mirrored[batch.index][:, None, None, None], images.flip(3), images)
            yield self.pooled(images), batch.targets

    def cached_epoch(self, features: Features, epoch: int, multiple: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same from the training images' ``features``, which are there already."""
        seed, device = self._recipe.seed, features.targets.device
        place = features.rows.new_full((self._data.train_size,), -1)
        place[features.rows] = torch.arange(len(features.rows), device=device)
        order = place[self._data.epoch_order(epoch, seed).rows.to(device)]
        order = order[order >= 0]
        views = torch.zeros_like(order)
        if self.flips:
            views = _coins(seed, epoch, self._data.train_size, device)[features.rows[order]].long()
        size = max(PIECE // multiple, 1) * multiple
        for rows, shown in zip(order.split(size), views.split(size), strict=True):
            yield features.values[shown, rows], features.targets[rows]


def _coins(seed: int, epoch: int, count: int, device: torch.device) -> Tensor:
    """Which of the training images an epoch shows mirrored: `[count]` bool."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return (torch.rand(count, generator=generator) < 0.5).to(device)
