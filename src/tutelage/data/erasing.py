"""Random erasing: a rectangle of noise in a normalised image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.data.chosen import change
from tutelage.data.hashing import normals, uniforms
from tutelage.data.windows import TRIES, Window, first_window

FIRST = 2**20
"""Place of the first random number, far behind those of any policy."""


@dataclass(frozen=True)
class RandomErasing:
    """timm's ``RandomErasing`` in its mode ``pixel`` with one rectangle.

    After Zhong et al. 2020, arXiv 1708.04896. For the call see `finish.Erasing`.

    Attributes:
        probability: Of an image to lose a rectangle.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width over height.
    """

    probability: float
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """See `finish.Erasing`."""
        chosen, window = self.plan(seeds, images.shape[3])
        images = images.clone()
        change(images, chosen, _erased, seeds, *window)
        return images

    def plan(self, seeds: Tensor, side: int) -> tuple[Tensor, Window]:
        """Whether each image with ``seeds`` `[B]` loses a rectangle, `[B]` bool, and which."""
        draws = uniforms(seeds, 1 + 4 * TRIES, FIRST)
        window, found = first_window(
            draws[:, 1:].unflatten(1, (TRIES, 4)), side, self.scale, self.ratio, side - 1
        )
        return (draws[:, 0] <= self.probability) & found & (seeds > 0), window


def _erased(
    images: Tensor, seeds: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """Noise in the rectangle (whole pixels, `[B]` each) of images `[B, 3, H, W]`."""
    channels, rows, columns = images.shape[1:]
    count = channels * rows * columns
    noise = normals(seeds, count + count % 2, FIRST + 1 + 4 * TRIES)[:, :count].view(images.shape)
    row, column = (torch.arange(length, device=images.device) for length in (rows, columns))
    down = (row >= top[:, None]) & (row < (top + height)[:, None])
    across = (column >= left[:, None]) & (column < (left + width)[:, None])
    return torch.where((down[:, :, None] & across[:, None, :])[:, None], noise.to(images.dtype), images)
