"""Made-up images in the place of a dataset that isn't there, to look at networks and methods all the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.data import Dataset, DatasetInfo, ImageData, ResidentData, Views, dataset_info
from tutelage.data.resident import Split
from tutelage.errors import UserError
from tutelage.recipes import Recipe
from tutelage.training.loading import load_data

FEW = 64
"""Different images that are made up."""


def data_or_stand_in(recipe: Recipe, device: torch.device) -> tuple[ImageData, str | None]:
    """The recipe's data, or noise of the same classes, size and number of labels; never to train on.

    Returns:
        The data, and why they are made up; None where they are not.

    Raises:
        UserError: The settings don't fit the data, or these aren't there and nothing is known of them.
    """
    try:
        return load_data(recipe, device), None
    except UserError as error:
        info = dataset_info(recipe.data.name)
        if not info.class_names or not info.train_count:
            raise
        return load_data(recipe, device, StandIn(info)), str(error)


class StandIn(Dataset):
    """As many labels as the dataset has, and room for as many images that takes none."""

    def __init__(self, info: DatasetInfo) -> None:
        splits = []
        for count in (info.train_count, info.test_count):
            labels = torch.arange(count) % info.num_classes
            blank = torch.zeros(1, 3, info.image_size, info.image_size, dtype=torch.uint8)
            splits += [blank.expand(count, -1, -1, -1), labels]
        super().__init__(info, *splits)

    def hand_out(self, device: torch.device, augment: Views, **settings: Any) -> ImageData:
        """What hands out batches; see `ResidentData` for the settings."""
        return Noise(self, device, augment=_OfFew(augment), **settings)


class Noise(ResidentData):
    """Hands out a few random images under the numbers of many."""

    def _resident(self, images: Tensor, labels: Tensor, rows: Tensor | None) -> Split:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (FEW, *images.shape[1:]), generator=generator, dtype=torch.uint8)
        kept = labels if rows is None else labels[rows.cpu()]
        held = noise.to(self.device).contiguous(memory_format=torch.channels_last)
        return Split(held, kept.to(self.device))


@dataclass(frozen=True)
class _OfFew:
    """Views of images that lie under their number modulo how many there are."""

    views: Views

    @property
    def size(self) -> int:
        return self.views.size

    @property
    def out_size(self) -> int:
        return self.views.out_size

    @property
    def count(self) -> int:
        return self.views.count

    @property
    def identity(self) -> int:
        return self.views.identity

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.views.sample(n, generator)

    def apply(self, images: Tensor, index: Tensor, view: Tensor) -> Tensor:
        return self.views.apply(images, index % len(images), view)

    def plain(self, images: Tensor) -> Tensor:
        return self.views.plain(images)
