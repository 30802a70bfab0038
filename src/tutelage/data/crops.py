"""Random resized crops as views: what an image becomes follows from the image and a number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

VIEWS = 2**31
"""Number of views; 0 is the plain one, the centre of the image."""

LONGEST = 20
"""Longer over shorter side up to which the whole of an image is resized for its centre.

A file of a hundred bytes can hold a line of 60000 pixels, which would take gigabytes as 256 of them.
"""


@dataclass(frozen=True)
class ResizedCrop:
    """torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip(0.5)``, drawn from the view's number.

    View 0 is what images are evaluated as: the shorter side resized to size / crop_share, the centre cut
    out. (Images longer than `LONGEST` times their width lose their ends before.) As each view has a generator
    of its own, any process or thread gives the same pixels.

    Attributes:
        size: Side of the result, in pixels.
        crop_share: Share of the resized side that evaluation shows (timm's ``crop_pct``).
        interpolation: "bilinear", "bicubic", or "random" for either while training and bicubic in evaluation,
            as in timm.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width over height.
        flip: Whether half of the views are mirrored.
    """

    size: int
    crop_share: float = 0.875
    interpolation: str = "random"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __call__(self, image: Image.Image, view: int) -> Tensor:
        """Cut ``view`` out of ``image``: `[3, size, size]` uint8."""
        if view == 0:
            cubic = self.interpolation != "bilinear"
            resized = TF.resize(_without_ends(image), math.floor(self.size / self.crop_share), _filter(cubic))
            return TF.pil_to_tensor(TF.center_crop(resized, [self.size, self.size]))
        generator = torch.Generator().manual_seed(view)
        top, left, height, width = self._window(image.height, image.width, generator)
        mirrored = self.flip and bool(torch.rand((), generator=generator) < 0.5)
        # Drawn last, so that a view has the same window and side whatever the filter is.
        cubic = self.interpolation == "bicubic" or (
            self.interpolation == "random" and bool(torch.rand((), generator=generator) < 0.5)
        )
        cut = TF.resized_crop(image, top, left, height, width, [self.size, self.size], _filter(cubic))
        return TF.pil_to_tensor(TF.hflip(cut) if mirrored else cut)

    def _window(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width: ten tries at a random window, else the largest central one allowed."""
        low, high = (math.log(end) for end in self.ratio)
        for _ in range(10):
            share, shape = torch.rand(2, generator=generator).tolist()
            area = height * width * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + shape * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(height - h + 1, (), generator=generator))
                left = int(torch.randint(width - w + 1, (), generator=generator))
                return top, left, h, w
        shape = min(max(width / height, self.ratio[0]), self.ratio[1])
        w = min(width, round(height * shape))
        h = min(height, round(w / shape))
        return (height - h) // 2, (width - w) // 2, h, w


def _filter(cubic: bool) -> InterpolationMode:
    return InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR


def _without_ends(image: Image.Image) -> Image.Image:
    """The image, cut around its centre to a shape that can be resized."""
    most = LONGEST * min(image.size)
    if max(image.size) <= most:
        return image
    # An even number of pixels goes away, so that the centre stays where it is to the fraction of a pixel.
    left, top = ((side - most) // 2 if side > most else 0 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))
