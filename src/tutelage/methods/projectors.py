"""Trainable maps between the stages of two networks, whatever family these are of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Form(NamedTuple):
    """A stage as a network passes it on.

    Attributes:
        channels: C.
        height: H, of the map that tokens are laid out as, too.
        width: W.
        tokens: Whether it is tokens `[B, H W, C]` inside the network rather than a map `[B, C, H, W]`.
    """

    channels: int
    height: int
    width: int
    tokens: bool = False

    @property
    def sides(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """`[C, H, W]`."""
        return self.channels, self.height, self.width


class ConvRegressor(nn.Module):
    """One convolution, batch norm and (by default) ReLU: the regressor of FitNet and AB.

    A student map of twice the teacher's sides is halved by a 3x3 convolution with stride 2; one of half the
    sides is doubled by a transposed 4x4 convolution with stride 2; a map at least as large otherwise is cut
    by an unpadded convolution whose kernel is 1 + the difference of the sides (1x1 for equal sides).

    The state dict's keys (``conv.*``, ``bn.*``) are those of RepDistiller's ConvReg (``models/util.py``).
    That one decides by height alone; here both sides have to follow the rule. A map that is smaller and not
    half as large, which that one refuses, is nearest-resized and goes through a 1x1 convolution.

    Args:
        student_shape: `[C_s, H_s, W_s]`.
        teacher_shape: `[C_t, H_t, W_t]`.
        relu: Whether a ReLU follows the batch norm.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int], relu: bool = True) -> None:
        super().__init__()
        student_channels, *student_sides = student_shape
        teacher_channels, height, width = teacher_shape
        self.sides = (height, width)
        self.conv = _fitting(student_channels, student_sides, teacher_channels, self.sides)
        self.bn = nn.BatchNorm2d(teacher_channels)
        self.relu = relu

    def forward(self, features: Tensor) -> Tensor:
        """Map student features `[B, C_s, H_s, W_s]` to `[B, C_t, H_t, W_t]`."""
        mapped = self.bn(resized(self.conv(features), self.sides))
        return F.relu(mapped) if self.relu else mapped


def _fitting(
    student_channels: int, student_sides: Sequence[int], teacher_channels: int, teacher_sides: Sequence[int]
) -> nn.Module:
    """The convolution that turns the student's shape into the teacher's; see ``ConvRegressor``."""
    sides = list(zip(student_sides, teacher_sides, strict=True))
    if all(student == 2 * teacher for student, teacher in sides):
        return nn.Conv2d(student_channels, teacher_channels, kernel_size=3, stride=2, padding=1)
    if all(2 * student == teacher for student, teacher in sides):
        return nn.ConvTranspose2d(student_channels, teacher_channels, kernel_size=4, stride=2, padding=1)
    if all(student >= teacher for student, teacher in sides):
        (height, target_height), (width, target_width) = sides
        kernel = (1 + height - target_height, 1 + width - target_width)
        return nn.Conv2d(student_channels, teacher_channels, kernel_size=kernel)
    return nn.Conv2d(student_channels, teacher_channels, kernel_size=1)


class Patches(nn.Module):
    """One token for each of G_h x G_w regions: a convolution whose kernel and stride are a region's sides.

    A region's side is ceil(H / G); where G of them exceed H, the map is nearest-resized to G of them.

    Args:
        shape: `[C, H, W]` of the map.
        grid: G, or (G_h, G_w).
        width: D, width of a token.

    Source:
        PAT ``distillers/pat.py`` (``RAProjector``, and ``projector`` from a map to tokens).
    """

    def __init__(self, shape: Sequence[int], grid: int | tuple[int, int], width: int) -> None:
        super().__init__()
        channels, *sides = shape
        rows, columns = (grid, grid) if isinstance(grid, int) else grid
        height, across = math.ceil(sides[0] / rows), math.ceil(sides[1] / columns)
        self.sides = (rows * height, columns * across)
        self.proj = nn.Conv2d(channels, width, (height, across), stride=(height, across))

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to tokens `[B, G_h * G_w, D]`, row by row."""
        return as_tokens(self.proj(resized(features, self.sides)))


class MapAligner(nn.Module):
    """A map in another shape: nearest-resized, batch norm, 1x1 convolution without bias.

    Args:
        channels: C of what comes in.
        shape: `[C', H', W']` of what goes out.
    """

    def __init__(self, channels: int, shape: Sequence[int]) -> None:
        super().__init__()
        width, height, across = shape
        self.sides = (height, across)
        self.conv = nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, width, 1, bias=False))
        self.apply(initialise_projector)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', H', W']`."""
        return self.conv(resized(features, self.sides))


class TokenAligner(nn.Module):
    """A sequence in another shape: one linear map over the width, then one over the tokens.

    Each has a batch norm in front, the first over tokens (they stand where channels usually do).

    Args:
        tokens: L of what comes in.
        width: D of what comes in.
        new_tokens: L' of what goes out.
        new_width: D' of what goes out.
    """

    def __init__(self, tokens: int, width: int, new_tokens: int, new_width: int) -> None:
        super().__init__()
        self.mlp_d = nn.Sequential(nn.BatchNorm1d(tokens), nn.Linear(width, new_width))
        self.mlp_l = nn.Sequential(nn.BatchNorm1d(new_width), nn.Linear(tokens, new_tokens))
        self.apply(initialise_projector)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L', D']`."""
        return self.mlp_l(self.mlp_d(tokens).transpose(1, 2)).transpose(1, 2)


def resized(features: Tensor, sides: tuple[int, int]) -> Tensor:
    """`[B, C, H, W]` nearest-resized to ``sides``."""
    return features if features.shape[2:] == sides else F.interpolate(features, sides)


def as_grid(tokens: Tensor, sides: tuple[int, int]) -> Tensor:
    """Tokens `[B, H * W, C]`, row by row, as a map `[B, C, H, W]`."""
    return tokens.transpose(1, 2).unflatten(2, sides)


def as_tokens(features: Tensor) -> Tensor:
    """A map `[B, C, H, W]` as tokens `[B, H * W, C]`, row by row."""
    return features.flatten(2).transpose(1, 2)


def initialise_projector(module: nn.Module) -> None:
    """Give one layer the weights that OFA-KD's and PAT's projectors start from; use as ``parts.apply(...)``.

    Convolutions: Kaiming normal for the fan out of a ReLU, their biases PyTorch's. Linear layers: normal of
    deviation 0.02 cut off at two units, no bias. Norms start with scale 1 and shift 0 anyway.

    Source:
        OFAKD and PAT ``distillers/utils.py``.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
