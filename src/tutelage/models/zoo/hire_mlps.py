"""Hire-MLP: pixels of a region laid side by side as channels, and regions shifted against each other.

Source: Guo et al. 2022, arXiv 2108.13341, as in OFAKD ``custom_model/hire_mlp.py``. Any image size works.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from tutelage.models.zoo.registration import IMAGENET, register_networks
from tutelage.models.zoo.staged import MixingBlock, StagedNet, blend, narrow, projection

_ConvMlp = partial(Mlp, use_conv=True)


class HireMixer(nn.Module):
    """Along each axis: shift, mix the pixels of a region, shift back; blended with a 1x1 convolution.

    Args:
        width: Channels C.
        region: Pixels R of a region; the map goes round where the last region isn't full.
        step: Pixels of the shift, which goes round too.
    """

    def __init__(self, width: int, region: int, step: int) -> None:
        super().__init__()
        self.region, self.step = region, step
        inner, outer = width // 2, width * region
        self.mlp_h1 = nn.Conv2d(outer, inner, 1, bias=False)
        self.mlp_h1_norm = nn.BatchNorm2d(inner)
        self.mlp_h2 = nn.Conv2d(inner, outer, 1)
        self.mlp_w1 = nn.Conv2d(outer, inner, 1, bias=False)
        self.mlp_w1_norm = nn.BatchNorm2d(inner)
        self.mlp_w2 = nn.Conv2d(inner, outer, 1)
        self.mlp_c = nn.Conv2d(width, width, 1)
        self.act = nn.ReLU()
        self.reweight = _ConvMlp(width, width // 4, 3 * width)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, H, W]``."""
        along_h = self._along(x, 2, self.mlp_h1, self.mlp_h1_norm, self.mlp_h2)
        along_w = self._along(x, 3, self.mlp_w1, self.mlp_w1_norm, self.mlp_w2)
        parts = (along_h, along_w, self.mlp_c(x))
        return self.proj(blend(parts, self.reweight, channels=1))

    def _along(self, x: Tensor, axis: int, first: nn.Module, norm: nn.Module, second: nn.Module) -> Tensor:
        regions = folded(x.roll(self.step, axis) if self.step else x, axis, self.region)
        mixed = second(self.act(norm(first(regions))))
        restored = unfolded(mixed, axis, self.region).narrow(axis, 0, x.shape[axis])
        return restored.roll(-self.step, axis) if self.step else restored


def folded(x: Tensor, axis: int, region: int) -> Tensor:
    """Regions of R pixels along ``axis`` as channels: ``[B, C, H, W]`` to ``[B, C R, H / R, W]`` for axis 2.

    A side that R doesn't divide is filled up with its beginning. The R pixels of a channel lie side by side.
    """
    full = x.shape[axis] + -x.shape[axis] % region
    while x.shape[axis] < full:
        x = torch.cat([x, x.narrow(axis, 0, min(x.shape[axis], full - x.shape[axis]))], axis)
    return x.unflatten(axis, (-1, region)).movedim(axis + 1, 2).flatten(1, 2)


def unfolded(x: Tensor, axis: int, region: int) -> Tensor:
    """The way back from `folded`."""
    return x.unflatten(1, (-1, region)).movedim(2, axis + 1).flatten(axis, axis + 1)


class HireNet(StagedNet):
    """Overlapping patches of stride 4, and four stages with overlapping 3x3 downsampling between them.

    Args:
        depths: Blocks of each stage.
        widths: Channels of each stage.
        regions: Pixels of a region in each stage.
        cycles: In each stage the shift grows from block to block and starts again after so many.
        dilations: By how many pixels it grows in each stage.
        num_classes: Classes N.
        in_chans: Channels of the images.
        drop_rate: See `StagedNet`.
        drop_path_rate: See `StagedNet`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 320, 512),
        regions: Sequence[int] = (4, 3, 3, 2),
        cycles: Sequence[int] = (2, 2, 3, 2),
        dilations: Sequence[int] = (2, 2, 1, 1),
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        strides = (4, *[2] * (len(depths) - 1))
        super().__init__(depths, widths, strides, num_classes, drop_rate, drop_path_rate)
        self.regions, self.cycles, self.dilations = tuple(regions), tuple(cycles), tuple(dilations)
        patch = nn.Conv2d(in_chans, widths[0], 7, stride=4, padding=2)
        self.build(_activated(patch), nn.BatchNorm2d(widths[-1]))

    def make_block(self, stage: int, number: int, drop_path: float) -> nn.Module:
        """A block of mixed regions; only every `cycles`-th has no shift."""
        width = self.widths[stage]
        step = number % self.cycles[stage] * self.dilations[stage]
        mixer = HireMixer(width, self.regions[stage], step)
        return MixingBlock(mixer, _ConvMlp(width, 4 * width), nn.BatchNorm2d, width, drop_path)

    def make_downsampling(self, channels: int, width: int, stride: int) -> nn.Module:
        """A 3x3 convolution with a stride, batch norm, ReLU."""
        return _activated(nn.Conv2d(channels, width, 3, stride, padding=1))

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Linear layers and convolutions start narrow."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            narrow(module)


def _activated(convolution: nn.Conv2d) -> nn.Sequential:
    return projection(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())


register_networks(
    __name__,
    HireNet,
    {
        "hire_mlp_tiny": {"depths": (2, 2, 4, 2)},
        "hire_mlp_small": {"depths": (3, 4, 10, 3)},
        "hire_mlp_base": {"depths": (4, 6, 24, 3)},
        "hire_mlp_large": {"depths": (4, 6, 24, 3), "widths": (96, 192, 384, 768)},
    },
    {**IMAGENET, "first_conv": "patch_embed.proj", "classifier": "head"},
    {"feature_cls": "getter", "out_indices": (0, 1, 2, 3)},
)
