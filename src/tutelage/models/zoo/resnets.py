"""CIFAR ResNets: basic blocks in three stages, and ResNet-50 with bottlenecks in four.

Source: He et al. 2016, as in RepDistiller ``models/resnet.py`` and ``models/resnetv2.py``. DPCD's ResNet-18
for CIFAR is built of bottlenecks too, hence ``resnet18_bottleneck_cifar``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.models.zoo.base import ActivatedBlock, CifarNet, Layout, conv, he_normal, he_normal_unbiased
from tutelage.models.zoo.registration import register_family


class BasicBlock(ActivatedBlock):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def preact(self, x: Tensor) -> Tensor:
        """The residual sum ``[B, channels, H / stride, W / stride]``."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return residual + self.downsample(x)


class Bottleneck(ActivatedBlock):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, a quarter as wide inside, beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        inner = channels // 4
        self.conv1 = conv(in_channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride)

    def preact(self, x: Tensor) -> Tensor:
        """The residual sum ``[B, channels, H / stride, W / stride]``."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return residual + self.shortcut(x)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_channels == channels:
        return nn.Sequential()
    return nn.Sequential(conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))


class CifarResNet(CifarNet):
    """A ResNet whose stem is one 3x3 convolution with stride 1.

    Args:
        blocks: Blocks per stage.
        widths: Channels of the stem and of each stage.
        num_classes: Classes N.
        in_chans: Channels of the images.
    """

    block: type[BasicBlock] | type[Bottleneck] = BasicBlock
    classifier = "fc"
    initialise = staticmethod(he_normal)
    initialise_branch = staticmethod(he_normal_unbiased)

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], num_classes: int = 100, in_chans: int = 3
    ) -> None:
        layout = Layout(
            stem=("conv1", "bn1", "relu"),
            stages=tuple((f"layer{index}",) for index in range(1, len(blocks) + 1)),
            tail=(),
            classifier=self.classifier,
            widths=tuple(widths),
            strides=(1, 1, *[2] * (len(blocks) - 1)),
            pooled_width=widths[-1],
        )
        super().__init__(layout, num_classes)
        self.blocks = tuple(blocks)
        self.build(in_chans)

    def make_stem(self, in_channels: int) -> list[nn.Module]:
        """3x3 convolution, batch norm, ReLU."""
        width = self.layout.widths[0]
        return [conv(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU()]

    def make_stage(self, index: int, in_channels: int, stride: int) -> list[nn.Module]:
        """One sequence of residual blocks, the first with the stride."""
        width = self.layout.widths[index]
        first = self.block(in_channels, width, stride)
        others = [self.block(width, width, 1) for _ in range(self.blocks[index - 1] - 1)]
        return [nn.Sequential(first, *others)]


class CifarBottleneckResNet(CifarResNet):
    """The same of bottleneck blocks; its published state dict calls the linear layer ``linear``."""

    block = Bottleneck
    classifier = "linear"
    initialise_branch = staticmethod(he_normal)


_NARROW = (16, 16, 32, 64)
_FOURFOLD = (32, 64, 128, 256)
_BOTTLENECK = (64, 256, 512, 1024, 2048)

register_family(
    CifarResNet,
    {
        f"resnet{6 * per_stage + 2}{suffix}_cifar": {"blocks": (per_stage,) * 3, "widths": widths}
        for suffix, widths, sizes in (("", _NARROW, (1, 2, 3, 5, 7, 9, 18)), ("x4", _FOURFOLD, (1, 5)))
        for per_stage in sizes
    },
    stages=3,
    first_conv="conv1",
    classifier="fc",
)
register_family(
    CifarBottleneckResNet,
    {
        "resnet18_bottleneck_cifar": {"blocks": (2, 2, 2, 2), "widths": _BOTTLENECK},
        "resnet50_cifar": {"blocks": (3, 4, 6, 3), "widths": _BOTTLENECK},
    },
    stages=4,
    first_conv="conv1",
    classifier="linear",
)
