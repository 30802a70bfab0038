"""AutoAugment's CIFAR-10 policy and Cutout as views, for a whole batch on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data import pixels
from tutelage.data.augment import CropFlip
from tutelage.data.hashing import uniforms

# Twice operation, probability, magnitude 0..9: Cubuk et al. 2019, table 7, in PACKD's version.
CIFAR10_POLICY = (
    ("invert", 0.1, 7, "contrast", 0.2, 6),
    ("rotate", 0.7, 2, "translate_x", 0.3, 9),
    ("sharpness", 0.8, 1, "sharpness", 0.9, 3),
    ("shear_y", 0.5, 8, "translate_y", 0.7, 9),
    ("autocontrast", 0.5, 8, "equalize", 0.9, 2),
    ("shear_y", 0.2, 7, "posterize", 0.3, 7),
    ("color", 0.4, 3, "brightness", 0.6, 7),
    ("sharpness", 0.3, 9, "brightness", 0.7, 9),
    ("equalize", 0.6, 5, "equalize", 0.5, 1),
    ("contrast", 0.6, 7, "sharpness", 0.6, 5),
    ("color", 0.7, 7, "translate_x", 0.5, 8),
    ("equalize", 0.3, 7, "autocontrast", 0.4, 8),
    ("translate_y", 0.4, 3, "sharpness", 0.2, 6),
    ("brightness", 0.9, 6, "color", 0.2, 8),
    ("solarize", 0.5, 2, "invert", 0.0, 3),
    ("equalize", 0.2, 0, "autocontrast", 0.6, 0),
    ("equalize", 0.2, 8, "equalize", 0.8, 4),
    ("color", 0.9, 9, "equalize", 0.6, 6),
    ("autocontrast", 0.8, 4, "solarize", 0.2, 8),
    ("brightness", 0.1, 3, "color", 0.7, 0),
    ("solarize", 0.4, 5, "autocontrast", 0.9, 3),
    ("translate_y", 0.9, 9, "translate_y", 0.7, 9),
    ("autocontrast", 0.9, 2, "solarize", 0.8, 3),
    ("equalize", 0.8, 8, "invert", 0.1, 3),
    ("translate_y", 0.7, 9, "autocontrast", 0.9, 1),
)
LARGEST = {
    "shear_y": 0.3,
    "translate_x": 150 / 331,
    "translate_y": 150 / 331,
    "rotate": 30.0,
    "color": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
    "brightness": 0.9,
}
"""Strength at magnitude 9; it grows evenly from 0."""
UNSIGNED = ("rotate",)
"""Operations with a strength that PACKD's code never turns round."""
POSTERIZE_BITS = (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)
SEEDS = 2**31
"""How many different draws of the policy there are; 0 leaves the image alone."""


def strength(operation: str, magnitude: int) -> float:
    """What ``magnitude`` 0..9 means to ``operation``, without a sign."""
    if operation == "posterize":
        return float(POSTERIZE_BITS[magnitude])
    if operation == "solarize":
        return 256 - 256 / 9 * magnitude
    return LARGEST.get(operation, 0.0) * magnitude / 9


@dataclass(frozen=True)
class AutoAugment:
    """Crop and flip, then a sub-policy drawn for each image, then one black square (Cutout).

    What PACKD's teachers and vanilla networks get as ``cifar100_aug``. View ``s * crop.count + c`` is view
    ``c`` of the crop with the draw ``s``, whose random numbers are a hash of it, so that the same view gives
    the same image on every device. The operations are Pillow's, see `pixels`.

    Attributes:
        crop: What comes first.
        hole: Side of the square in pixels, clipped at the border; 0 for none.
    """

    crop: CropFlip
    hole: int = 16

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return self.crop.size

    @property
    def out_size(self) -> int:
        """Side of the images that come out, in pixels."""
        return self.size

    @property
    def count(self) -> int:
        """Number of distinct views."""
        return SEEDS * self.crop.count

    @property
    def identity(self) -> int:
        """Id of the view that leaves the image as it is."""
        return self.crop.identity

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` view ids, `[n]` int64 on the generator's device."""
        corner = self.crop.sample(n, generator)
        seeds = torch.randint(1, SEEDS, (n,), generator=generator, device=generator.device)
        return seeds * self.crop.count + corner

    def apply(self, images: Tensor, index: Tensor, view: Tensor) -> Tensor:
        """See `CropFlip.apply`; the images are uint8."""
        cut = self.crop.apply(images, index, view % self.crop.count)
        seeds = view // self.crop.count
        draws = uniforms(seeds, 7)
        changed = cut
        chosen = (draws[:, 0] * len(CIFAR10_POLICY)).long()
        for stage in (0, 1):
            fires, turns = draws[:, 1 + 2 * stage], draws[:, 2 + 2 * stage]
            changed = _apply_stage(changed, stage, chosen, fires, turns)
        if self.hole:
            centre = (draws[:, 5:] * self.size).long()
            changed = pixels.cutout(changed, centre[:, 0], centre[:, 1], self.hole)
        return torch.where((seeds > 0)[:, None, None, None], changed, cut)

    def plain(self, images: Tensor) -> Tensor:
        """Images as they are evaluated: as they are."""
        return images


class Stage(NamedTuple):
    """The first or the second operation of every sub-policy, on a device.

    Attributes:
        names: Of the operations.
        which: `[25]` int64, the operation as a place in ``names``.
        probability: `[25]` float32.
        strength: `[25]` float32.
        signed: `[25]` bool, whether the strength may be turned round.
    """

    names: tuple[str, ...]
    which: Tensor
    probability: Tensor
    strength: Tensor
    signed: Tensor


@cache
def _stage(number: int, device: torch.device) -> Stage:
    entries = [row[3 * number : 3 * number + 3] for row in CIFAR10_POLICY]
    names = tuple(sorted({str(name) for name, _, _ in entries}))
    return Stage(
        names,
        torch.tensor([names.index(str(name)) for name, _, _ in entries], device=device),
        torch.tensor([chance for _, chance, _ in entries], device=device),
        torch.tensor([strength(str(name), int(m)) for name, _, m in entries], device=device),
        torch.tensor([name in LARGEST and name not in UNSIGNED for name, _, _ in entries], device=device),
    )


def _apply_stage(images: Tensor, number: int, chosen: Tensor, fires: Tensor, turns: Tensor) -> Tensor:
    """One operation on each image: the first (number 0) or the second of its sub-policy.

    Every operation is computed for all images and taken where it is the one: the host is not asked.

    Args:
        images: `[B, 3, H, W]` uint8.
        number: 0 or 1.
        chosen: `[B]` int64, the sub-policy.
        fires: `[B]` in 0..1, compared with the operation's probability.
        turns: `[B]` in 0..1, the sign of its strength.
    """
    stage = _stage(number, images.device)
    size = torch.where(stage.signed[chosen] & (turns < 0.5), -1.0, 1.0) * stage.strength[chosen]
    fired = fires < stage.probability[chosen]
    result = images
    for place, name in enumerate(stage.names):
        here = fired & (stage.which[chosen] == place)
        result = torch.where(here[:, None, None, None], pixels.OPERATIONS[name](images, size), result)
    return result
