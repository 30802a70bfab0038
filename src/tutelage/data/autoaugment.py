"""AutoAugment's CIFAR-10 policy and Cutout, for a whole batch on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data import pixels
from tutelage.data.chosen import change
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


def strength(operation: str, magnitude: int) -> float:
    """What ``magnitude`` 0..9 means to ``operation``, without a sign."""
    if operation == "posterize":
        return float(POSTERIZE_BITS[magnitude])
    if operation == "solarize":
        return 256 - 256 / 9 * magnitude
    return LARGEST.get(operation, 0.0) * magnitude / 9


@dataclass(frozen=True)
class AutoAugment:
    """A sub-policy drawn for each image, then one black square (Cutout).

    What PACKD's teachers and vanilla networks get as ``cifar100_aug``, after crop and flip. The operations
    are Pillow's, see `pixels`; for the call see `finish.Policy`.

    Attributes:
        hole: Side of the square, which is clipped at the border, as a share of the image's; 0 for none.
    """

    hole: float = 0.5

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """See `finish.Policy`."""
        images = images.clone()
        draws, varied = uniforms(seeds, 7), seeds > 0
        chosen = (draws[:, 0] * len(CIFAR10_POLICY)).long()
        for number in (0, 1):
            stage = _stage(number, seeds.device)
            fired = varied & (draws[:, 1 + 2 * number] < stage.probability[chosen])
            turned = stage.signed[chosen] & (draws[:, 2 + 2 * number] < 0.5)
            size = torch.where(turned, -1.0, 1.0) * stage.strength[chosen]
            for place, name in enumerate(stage.names):
                here = fired & (stage.which[chosen] == place)
                change(images, here, pixels.OPERATIONS[name], size)
        if self.hole:
            height, width = images.shape[2:]
            row, column = (draws[:, 5] * height).long(), (draws[:, 6] * width).long()
            change(images, varied, partial(pixels.cutout, side=round(self.hole * width)), row, column)
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
