"""Mixup and CutMix: every image of a batch mixed with the one that stands opposite, labels too."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Box(NamedTuple):
    """A rectangle of pixels, the last row and column not included."""

    top: int
    bottom: int
    left: int
    right: int


class Mix(NamedTuple):
    """How one batch is mixed with itself in reverse order.

    Attributes:
        share: What an image keeps of its own label, in [0, 1].
        box: The rectangle that is taken from the other image (CutMix); None blends the whole images (mixup).
    """

    share: float = 1.0
    box: Box | None = None

    def images(self, images: Tensor) -> Tensor:
        """Mix images `[B, 3, H, W]`: row i with row B - 1 - i. The middle one of an odd number stays.

        Returns:
            New images; the same ones where nothing is to be mixed.
        """
        if self.share == 1.0:
            return images
        others = images.flip(0)
        if self.box is None:
            return (images * self.share).add_(others.mul_(1.0 - self.share))
        rows, columns = slice(*self.box[:2]), slice(*self.box[2:])
        mixed = images.clone()
        mixed[:, :, rows, columns] = others[:, :, rows, columns]
        return mixed

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Labels `[B]` int64 as distributions `[B, C]` float32, mixed as the images are."""
        own = labels.unsqueeze(1) == torch.arange(classes, device=labels.device)
        alone = own.to(torch.float32)
        return alone * self.share + alone.flip(0) * (1.0 - self.share)


@dataclass(frozen=True)
class Mixing:
    """timm's ``Mixup`` in its batch mode, with numbers that follow from (seed, epoch, step) alone.

    One draw holds for a whole batch. The share comes from Beta(alpha, alpha); CutMix's rectangle has the rest
    of the area, about a point drawn anywhere, and where the border cuts it the share grows accordingly. From
    the same random numbers timm (``timm.data.mixup``) makes the same batch. Two differences: timm's loader
    mixes 8-bit images and rounds them, and labels are smoothed by the criterion here, after mixing, which
    gives the same.

    Attributes:
        classes: C, number of classes.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none. One of the two is above 0.
        probability: Chance that a batch is mixed.
        switch: Chance of CutMix where there are both.
        off_epoch: Epoch from which nothing is mixed any more; 0 for never.
    """

    classes: int
    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5
    off_epoch: int = 0

    def draw(self, seed: int, epoch: int, step: int, side: int) -> Mix:
        """What happens to the batch of a step; computed on the host.

        Args:
            seed: Of the run.
            epoch: From 0.
            step: Within the epoch, from 0.
            side: Of the images, in pixels.
        """
        if self.off_epoch and epoch >= self.off_epoch:
            return Mix()
        # The only generator of NumPy whose numbers are promised to stay; the order of draws is timm's.
        numbers = np.random.RandomState(_seed(seed, epoch, step))
        if numbers.rand() >= self.probability:
            return Mix()
        cut = not self.mixup
        if self.mixup and self.cutmix:
            cut = bool(numbers.rand() < self.switch)
        alpha = self.cutmix if cut else self.mixup
        share = float(numbers.beta(alpha, alpha))
        if share == 1.0 or not cut:
            return Mix(share)
        length = int(side * math.sqrt(1 - share))
        (top, bottom), (left, right) = (_clipped(int(numbers.randint(0, side)), length, side) for _ in "hw")
        return Mix(1.0 - (bottom - top) * (right - left) / side**2, Box(top, bottom, left, right))


def _clipped(centre: int, length: int, side: int) -> tuple[int, int]:
    """Begin and end of ``length`` pixels about ``centre`` within 0..side."""
    return max(centre - length // 2, 0), min(centre + (length + 1) // 2, side)


def _seed(seed: int, epoch: int, step: int) -> int:
    """32 well-mixed bits."""
    digest = hashlib.sha256(f"tutelage mixing {seed} {epoch} {step}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
