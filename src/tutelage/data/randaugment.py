"""timm's RandAugment and torchvision's colour jitter as policies, for whole batches on the device."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data import pixels
from tutelage.data.affine import Colour, affine, moving, turning
from tutelage.data.catalog import Triple
from tutelage.data.chosen import change
from tutelage.data.hashing import normals, uniforms
from tutelage.errors import UserError

SCALE = 10.0
"""The magnitude at which an operation has its customary range; the largest one by default."""
TONES = (
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (*TONES, *MOVES)
"""Each is equally likely."""
DRAWS = 6
"""Random numbers of a layer: operation, whether, two for the magnitude, sign, filter."""
UNIFORM_FROM = 100
"""A deviation of the magnitude above this stands for uniform draws between 0 and the magnitude."""
SECTION = re.compile(r"(m|n|mmax)(\d+)|(p|mstd)(\d+(?:\.\d+)?)|(inc)([01])")
ORDERS = 6
"""Of three operations."""


class Layer(NamedTuple):
    """What one layer of RandAugment does to each image of a batch.

    Attributes:
        operation: `[B]` int64, place in `OPERATIONS`.
        fires: `[B]` bool, whether it is done.
        magnitude: `[B]` float64, not negative.
        sign: `[B]` float64, 1 or -1, for operations with two directions.
        cubic: `[B]` bool, bicubic or bilinear, for operations that move pixels.
    """

    operation: Tensor
    fires: Tensor
    magnitude: Tensor
    sign: Tensor
    cubic: Tensor


@dataclass(frozen=True)
class RandAugment:
    """So many operations for each image, drawn with replacement, each done with some probability.

    timm's ``rand_augment_transform`` with its 15 operations in their two scales, after Cubuk et al. 2020,
    arXiv 1909.13719. By default a magnitude means to each operation what it meant to TensorFlow's code; with
    ``increasing`` a larger one is a stronger change for all. From the same random numbers timm makes the same
    pixels, except that the newest Pillow refuses to keep no bits of a pixel, which here is still black. For
    the call see `finish.Policy`.

    Attributes:
        magnitude: Of all operations (m).
        layers: How many operations (n).
        probability: Of each (p).
        deviation: Standard deviation of the magnitude (mstd); inf for uniform in 0..magnitude.
        largest: Magnitudes are cut to 0..largest (mmax).
        increasing: The scale (inc).
        fill: What stands where a moved image does not reach.
    """

    magnitude: float = SCALE
    layers: int = 2
    probability: float = 0.5
    deviation: float = 0.0
    largest: float = SCALE
    increasing: bool = False
    fill: Colour = (128, 128, 128)

    @classmethod
    def parse(cls, policy: str, mean: Triple) -> RandAugment:
        """Read timm's notation, such as ``rand-m9-mstd0.5-inc1``.

        Args:
            policy: Of the sections m, n, p, mstd, mmax and inc, in any order.
            mean: Of the images, on the 0..1 scale; fills what moved images leave.

        Raises:
            UserError: It is not of this form.
        """
        first, *sections = policy.split("-")
        found = [SECTION.fullmatch(section) for section in sections]
        given = dict(tuple(filter(None, match.groups())) for match in found if match)
        if first != "rand" or len(given) < len(sections):
            raise UserError(
                f"data.augment can't be '{policy}'; use true, false, autoaugment, or one like "
                "rand-m9-mstd0.5-inc1 (timm's RandAugment: m, n, p, mstd, mmax, inc, each at most once)"
            )
        deviation = float(given.get("mstd", 0))
        red, green, blue = (min(255, round(255 * value)) for value in mean)
        return cls(
            float(given.get("m", SCALE)),
            int(given.get("n", 2)),
            float(given.get("p", 0.5)),
            math.inf if deviation > UNIFORM_FROM else deviation,
            float(given.get("mmax", 0)) or SCALE,
            given.get("inc") == "1",
            (red, green, blue),
        )

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """See `finish.Policy`."""
        images = images.clone()
        for number in range(self.layers):
            layer = self.layer(number, seeds)
            for place, name in enumerate(TONES):
                chosen = layer.fires & (layer.operation == place)
                change(images, chosen, pixels.OPERATIONS[name], self.strength(name, layer))
            moves = layer.fires & (layer.operation >= len(TONES))
            matrices = move_matrices(layer, *images.shape[2:])
            for cubic in (False, True):
                moved = partial(affine, cubic=cubic, fill=self.fill)
                change(images, moves & (layer.cubic == cubic), moved, matrices)
        return images

    def layer(self, number: int, seeds: Tensor) -> Layer:
        """What the layer with this number, from 0, does to images with ``seeds`` `[B]`."""
        first = DRAWS * number
        draws = uniforms(seeds, DRAWS, first)
        if math.isinf(self.deviation):
            magnitude = self.magnitude * draws[:, 2].double()
        else:
            # Rounded, for logarithms and cosines may differ in the last digit between devices.
            noise = normals(seeds, 2, first + 2, torch.float64)[:, 0].float().double()
            magnitude = self.magnitude + self.deviation * noise
        return Layer(
            (draws[:, 0] * len(OPERATIONS)).long(),
            (draws[:, 1] <= self.probability) & (seeds > 0),
            magnitude.clamp(0, self.largest),
            torch.where(draws[:, 4] > 0.5, -1.0, 1.0).double(),
            draws[:, 5] >= 0.5,
        )

    def strength(self, name: str, layer: Layer) -> Tensor:
        """What the magnitudes mean to the tonal operation ``name`` of `pixels`: `[B]` float64."""
        share = layer.magnitude / SCALE
        if name in ("color", "contrast", "brightness", "sharpness"):
            if self.increasing:
                return (1 + layer.sign * (share * 0.9)).clamp(min=0.1) - 1
            return share * 1.8 + 0.1 - 1
        if name == "solarize_add":
            return (share * 110).floor().clamp(max=128)
        if name == "posterize":
            bits = (share * 4).floor()
            return 4 - bits if self.increasing else bits
        threshold = (share * 256).floor().clamp(max=256)  # of solarize; the others don't look at it
        return 256 - threshold if self.increasing else threshold


def move_matrices(layer: Layer, height: int, width: int) -> Tensor:
    """Matrices `[B, 6]` of the operations that move pixels; those of the others mean nothing."""
    signed = layer.sign * (layer.magnitude / SCALE)
    kinds = torch.stack(
        [
            turning(signed * 30, height, width),
            moving(1, signed * 0.3),
            moving(3, signed * 0.3),
            moving(2, signed * 0.45 * width),
            moving(5, signed * 0.45 * height),
        ]
    )
    kind = (layer.operation - len(TONES)).clamp(min=0)
    return kinds.gather(0, kind[None, :, None].expand(1, -1, 6))[0]


@dataclass(frozen=True)
class ColorJitter:
    """torchvision's ``ColorJitter`` of brightness, contrast and saturation, on 8-bit images.

    Each is multiplied by a factor uniform in [max(0, 1 - share), 1 + share], in random order. From the same
    random numbers Pillow gives the same pixels. See `finish.Policy`.

    Attributes:
        share: How much each may change, above 0.
    """

    share: float

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """See `finish.Policy`."""
        images = images.clone()
        order, strengths = self.plan(seeds)
        for turn in range(3):
            for place, name in enumerate(("brightness", "contrast", "color")):
                chosen = (order[:, turn] == place) & (seeds > 0)
                change(images, chosen, pixels.OPERATIONS[name], strengths[:, place])
        return images

    def plan(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the three comes first, second and last, `[B, 3]` int64; their factors less 1, `[B, 3]`."""
        draws = uniforms(seeds, 4).double()
        lowest = max(0.0, 1 - self.share)
        factors = lowest + draws[:, 1:] * (1 + self.share - lowest)
        number = (draws[:, 0] * ORDERS).long()
        first = number // 2
        second, third = (first + 1 + number % 2) % 3, (first + 2 - number % 2) % 3
        return torch.stack([first, second, third], dim=1), factors - 1
