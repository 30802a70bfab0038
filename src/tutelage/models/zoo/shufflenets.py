"""ShuffleNets for CIFAR: stem 1x1 with stride 1 and no pooling, three stages.

Sources: Zhang et al. 2018 and Ma et al. 2018, as in RepDistiller ``models/ShuffleNetv1.py`` and
``models/ShuffleNetv2.py``. Weights start from PyTorch's defaults.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.models.zoo.base import ActivatedBlock, CifarNet, Layout, conv, he_normal_unbiased
from tutelage.models.zoo.registration import register_family

_STEM_WIDTH = 24


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` equal groups: ``[B, C, H, W]`` to the same shape."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class GroupedUnit(ActivatedBlock):
    """ShuffleNetV1's unit: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, a quarter as wide inside.

    With stride 1 the input is added. With stride 2 the average-pooled input is put beside it as further
    channels, so that the convolutions only make the channels that are missing. The ReLU after the depthwise
    convolution is the research code's; the paper has none there.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        made = channels - in_channels if stride == 2 else channels
        inner = made // 4
        self.stride = stride
        self.groups = 1 if in_channels == _STEM_WIDTH else 3
        self.conv1 = conv(in_channels, inner, 1, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, made, 1, groups=3)
        self.bn3 = nn.BatchNorm2d(made)

    def preact(self, x: Tensor) -> Tensor:
        """The sum, or for stride 2 the concatenation, ``[B, channels, H / stride, W / stride]``."""
        out = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return out + x
        return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)


class SplitUnit(ActivatedBlock):
    """ShuffleNetV2's unit: half the channels pass by, the other half through 1x1, depthwise 3x3 and 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def preact(self, x: Tensor) -> Tensor:
        """Both halves side by side, not shuffled, the right one before its ReLU: ``[B, C, H, W]``."""
        return torch.cat(self._halves(x), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self._join(*self._halves(x))

    def forward_with_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The unit's output and `preact`, both ``[B, C, H, W]``."""
        left, right = self._halves(x)
        return self._join(left, right), torch.cat([left, right], dim=1)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = x.chunk(2, dim=1)
        right = F.relu(self.bn1(self.conv1(right)))
        right = self.bn2(self.conv2(right))
        return left, self.bn3(self.conv3(right))

    @staticmethod
    def _join(left: Tensor, right: Tensor) -> Tensor:
        return shuffle(torch.cat([left, F.relu(right)], dim=1), 2)


class DownUnit(nn.Module):
    """The first unit of a ShuffleNetV2 stage: both halves are made from the whole input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(in_channels, in_channels, 3, stride, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, stride, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return shuffle(torch.cat([left, right], dim=1), 2)


class CifarShuffleNet(CifarNet):
    """What both ShuffleNets have in common; a subclass gives widths, units and tail.

    Args:
        num_classes: Classes N.
        in_chans: Channels of the images.
    """

    stage_widths: tuple[int, int, int]
    pooled_width: int
    tail: tuple[str, ...] = ()
    units = (4, 8, 4)

    def __init__(self, num_classes: int = 100, in_chans: int = 3) -> None:
        layout = Layout(
            stem=("conv1", "bn1", "relu"),
            stages=(("layer1",), ("layer2",), ("layer3",)),
            tail=self.tail,
            classifier="linear",
            widths=(_STEM_WIDTH, *self.stage_widths),
            strides=(1, 2, 2, 2),
            pooled_width=self.pooled_width,
        )
        super().__init__(layout, num_classes)
        self.build(in_chans)

    def make_stem(self, in_channels: int) -> list[nn.Module]:
        """1x1 convolution, batch norm, ReLU."""
        return [conv(in_channels, _STEM_WIDTH, 1), nn.BatchNorm2d(_STEM_WIDTH), nn.ReLU()]

    def make_stage(self, index: int, in_channels: int, stride: int) -> list[nn.Module]:
        """One sequence of units, the first with the stride."""
        width = self.layout.widths[index]
        others = [self.make_unit(width) for _ in range(self.units[index - 1] - 1)]
        return [nn.Sequential(self.make_first_unit(in_channels, width, stride), *others)]

    @abstractmethod
    def make_first_unit(self, in_channels: int, channels: int, stride: int) -> nn.Module:
        """The unit that changes width and size."""

    @abstractmethod
    def make_unit(self, channels: int) -> nn.Module:
        """A unit that keeps both."""


class CifarShuffleNetV1(CifarShuffleNet):
    """ShuffleNetV1 with three groups."""

    stage_widths = (240, 480, 960)
    pooled_width = 960
    initialise_branch = staticmethod(he_normal_unbiased)

    def make_first_unit(self, in_channels: int, channels: int, stride: int) -> nn.Module:
        return GroupedUnit(in_channels, channels, stride)

    def make_unit(self, channels: int) -> nn.Module:
        return GroupedUnit(channels, channels, 1)


class CifarShuffleNetV2(CifarShuffleNet):
    """ShuffleNetV2 1x, with a 1x1 convolution to 1024 channels as the tail."""

    stage_widths = (116, 232, 464)
    pooled_width = 1024
    tail = ("conv2", "bn2", "relu2")

    def make_first_unit(self, in_channels: int, channels: int, stride: int) -> nn.Module:
        return DownUnit(in_channels, channels, stride)

    def make_unit(self, channels: int) -> nn.Module:
        return SplitUnit(channels)

    def make_tail(self) -> list[nn.Module]:
        """1x1 convolution, batch norm, ReLU."""
        width = self.pooled_width
        return [conv(self.layout.widths[-1], width, 1), nn.BatchNorm2d(width), nn.ReLU()]


for _name, _family in (("shufflenetv1_cifar", CifarShuffleNetV1), ("shufflenetv2_cifar", CifarShuffleNetV2)):
    register_family(_family, {_name: {}}, stages=3, first_conv="conv1", classifier="linear")
