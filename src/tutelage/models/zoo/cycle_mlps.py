"""CycleMLP: channels looked up at neighbouring positions, in turn, so that a linear layer sees three pixels.

Source: Chen et al. 2022, arXiv 2107.10224, as in OFAKD ``custom_model/cycle_mlp.py``. Any image size works.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.models.zoo.registration import IMAGENET, register_networks
from tutelage.models.zoo.staged import ChannelsLast, MixingBlock, StagedNet, blend, narrow, projection

_REACH = 3
"""Positions over which the channels are spread."""


class CycleFC(nn.Module):
    """A linear layer whose input channel c comes from the position c steps along, counted cyclically.

    Channel c is taken from the position ``(c + 1) % 3 - 1`` steps further along an axis; zeros lie outside.
    The reference has it as a deformable 1x1 convolution with these offsets.

    Args:
        channels: C.
        axis: Along which: 1 for H, 2 for W.

    Attributes:
        offset: ``[1, 2 C, 1, 1]``, steps along H and W of each channel, as the published state dicts have it.
    """

    offset: Tensor

    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.empty(channels, channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(channels))
        steps = torch.zeros(channels, 2)
        steps[:, axis - 1] = ((torch.arange(channels) + 1) % _REACH - 1).to(steps.dtype)
        self.register_buffer("offset", steps.view(1, 2 * channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` to ``[B, H, W, C]``."""
        steps = self.offset.view(-1, 2)[:, self.axis - 1]
        side = x.shape[self.axis]
        padded = F.pad(x, (0, 0, 0, 0, 1, 1) if self.axis == 1 else (0, 0, 1, 1))
        behind, ahead = padded.narrow(self.axis, 0, side), padded.narrow(self.axis, 2, side)
        taken = torch.where(steps == 0, x, torch.where(steps > 0, ahead, behind))
        return F.linear(taken, self.weight[:, :, 0, 0], self.bias)


class CycleMixer(nn.Module):
    """Two cyclic linear layers, one along each axis, and a plain one, blended.

    The names say h and w of the axis that stays where it is, as published.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp_c = nn.Linear(width, width, bias=False)
        self.sfc_h = CycleFC(width, axis=2)
        self.sfc_w = CycleFC(width, axis=1)
        self.reweight = Mlp(width, width // 4, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` to ``[B, H, W, C]``."""
        parts = (self.sfc_h(x), self.sfc_w(x), self.mlp_c(x))
        return self.proj(blend(parts, self.reweight, channels=3))


class CycleNet(StagedNet):
    """Overlapping patches of stride 4, and four stages with overlapping 3x3 downsampling between them.

    Args:
        depths: Blocks of each stage.
        widths: Channels of each stage.
        mlp_ratios: Of each stage: channels inside its blocks' MLP by channels outside.
        num_classes: Classes N.
        in_chans: Channels of the images.
        drop_rate: See `StagedNet`.
        drop_path_rate: See `StagedNet`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 320, 512),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        strides = (4, *[2] * (len(depths) - 1))
        super().__init__(depths, widths, strides, num_classes, drop_rate, drop_path_rate)
        self.mlp_ratios = tuple(mlp_ratios)
        patches = projection(nn.Conv2d(in_chans, widths[0], 7, stride=4, padding=2))
        self.build(patches, LayerNorm2d(widths[-1], eps=1e-5))

    def make_stage(self, blocks: Sequence[nn.Module]) -> nn.Sequential:
        """Blocks that have the channels last."""
        return ChannelsLast(*blocks)

    def make_block(self, stage: int, number: int, drop_path: float) -> nn.Module:
        """A block of cyclic linear layers."""
        width = self.widths[stage]
        mlp = Mlp(width, int(width * self.mlp_ratios[stage]))
        return MixingBlock(CycleMixer(width), mlp, nn.LayerNorm, width, drop_path)

    def make_downsampling(self, channels: int, width: int, stride: int) -> nn.Module:
        """A 3x3 convolution with a stride."""
        return projection(nn.Conv2d(channels, width, 3, stride, padding=1))

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """All linear layers, the cyclic ones too, start narrow."""
        if isinstance(module, nn.Linear | CycleFC):
            narrow(module)


_WIDE = (8, 8, 4, 4)

register_networks(
    __name__,
    CycleNet,
    {
        "CycleMLP_B1": {"depths": (2, 2, 4, 2)},
        "CycleMLP_B2": {"depths": (2, 3, 10, 3)},
        "CycleMLP_B3": {"depths": (3, 4, 18, 3), "mlp_ratios": _WIDE},
        "CycleMLP_B4": {"depths": (3, 8, 27, 3), "mlp_ratios": _WIDE},
        "CycleMLP_B5": {"depths": (3, 4, 24, 3), "widths": (96, 192, 384, 768)},
    },
    {**IMAGENET, "first_conv": "patch_embed.proj", "classifier": "head"},
    {"feature_cls": "getter", "out_indices": (0, 1, 2, 3)},
    crops=(0.9, 0.9, 0.9, 0.875, 0.875),
)
