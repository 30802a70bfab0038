"""OFA-KD's branches: from the end of a student's stage to class scores."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

LAST_GRID = 7
"""Tokens a side that merging leaves at least; a hierarchical network ends in so many for 224 x 224 pixels."""

HEADS = 4
"""Attention heads of a branch's blocks."""


def conv_branch(channels: int, width: int, classes: int, remaining: int) -> nn.Sequential:
    """A branch on maps `[B, C, H, W]`: what is left of the way to the network's end, made of cheap blocks.

    Each of the remaining stages is one `halving` block that doubles the channels, the last one instead leads
    to the common width D; behind the last stage a 1x1 convolution does. Then the mean over space and a linear
    layer. Where the map ends up as one pixel, batches need two samples or more for the batch norms.

    Args:
        channels: C.
        width: D.
        classes: Number of classes N.
        remaining: Stages behind this one.

    Returns:
        A module from `[B, C, H, W]` to `[B, N]`. Its layers are numbered as OFAKD's, each of whose blocks is
        one level deeper, in ``op``.
    """
    widths = [*(channels << step for step in range(remaining)), width]
    blocks = [halving(inputs, outputs) for inputs, outputs in pairwise(widths)]
    body: list[nn.Module] = [*blocks] or [nn.Conv2d(channels, width, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def halving(inputs: int, outputs: int) -> nn.Sequential:
    """Two depthwise separable convolutions, the first of stride 2: `[B, C, H, W]` to `[B, M, H/2, W/2]`."""
    return nn.Sequential(*_separable(inputs, inputs, stride=2), *_separable(inputs, outputs, stride=1))


def _separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
    return [depthwise, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Merge(nn.Module):
    """One token of every 2 x 2: `[B, H, W, C]` to `[B, H / 2, W / 2, D]`; odd sides get a row of zeros first.

    Args:
        channels: C.
        width: D.
        activation: Applied at the end.
    """

    ORDER = ((0, 0), (1, 0), (0, 1), (1, 1))
    """(row, column) of the four, in the order they are laid side by side."""

    def __init__(self, channels: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, width, bias=False)
        self.activation = activation

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        height, width = tokens.shape[1:3]
        even = F.pad(tokens, (0, 0, 0, width % 2, 0, height % 2))
        four = torch.cat([even[:, row::2, column::2] for row, column in self.ORDER], dim=3)
        merged: Tensor = self.activation(self.reduction(self.norm(four)))
        return merged


class TokenBranch(nn.Module):
    """A branch on tokens: merge them while there are 14 a side or more, attend, read the class off.

    With a class token, it goes round the merging, attends with the others and gives the answer; without, the
    mean over the tokens does. Blocks are those of a ViT with `HEADS` heads (fewer where D is no multiple).

    Args:
        channels: C of the stage; D where there is a class token.
        width: D, of the blocks.
        classes: Number of classes N.
        grid: The smaller side of the map of tokens.
        depth: Number of blocks.
    """

    def __init__(self, channels: int, width: int, classes: int, grid: int, depth: int) -> None:
        super().__init__()
        self.merges = nn.Sequential(*_merges(channels, width, count_merges(grid)))
        heads = math.gcd(HEADS, width)
        self.blocks = nn.Sequential(*(Block(width, heads, norm_layer=nn.LayerNorm) for _ in range(depth)))
        self.head = nn.Linear(width, classes)

    def forward(self, features: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Class scores `[B, N]`.

        Args:
            features: The tokens as a map `[B, C, H, W]`.
            prefix: The P tokens before them `[B, C, P, 1]`, the class token first.
        """
        tokens = self.merges(features.permute(0, 2, 3, 1)).flatten(1, 2)
        if prefix is None:
            vector = self.blocks(tokens).mean(dim=1)
        else:
            before = prefix.squeeze(3).transpose(1, 2)
            vector = self.blocks(torch.cat([before, tokens], dim=1))[:, 0]
        scores: Tensor = self.head(vector)
        return scores


def count_merges(grid: int) -> int:
    """How often ``grid`` tokens a side can be halved without falling below `LAST_GRID`."""
    return max((grid // LAST_GRID).bit_length() - 1, 0)


def _merges(channels: int, width: int, count: int) -> list[nn.Module]:
    """The mergers; without any, a linear layer where the widths differ. The last of several stays linear."""
    if not count:
        return [] if channels == width else [nn.Linear(channels, width, bias=False)]
    first = Merge(channels, width, nn.GELU())
    between = [Merge(width, width, nn.GELU()) for _ in range(count - 2)]
    return [first, *between, *([Merge(width, width, nn.Identity())] if count > 1 else [])]
