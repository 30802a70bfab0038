"""CIFAR wide ResNets with pre-activation blocks.

Source: Zagoruyko and Komodakis 2016, as in RepDistiller ``models/wrn.py``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.models.zoo.base import CifarNet, Layout, conv, he_normal_unbiased, module_at
from tutelage.models.zoo.registration import register_family


class PreactivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions.

    The shortcut is the raw input; where the width changes it is a 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.convShortcut = conv(in_channels, channels, 1, stride) if in_channels != channels else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        residual = self.conv1(activated)
        residual = self.conv2(F.relu(self.bn2(residual)))
        return residual + (x if self.convShortcut is None else self.convShortcut(activated))


class Group(nn.Module):
    """Pre-activation blocks in a row; the stride is the first one's."""

    def __init__(self, blocks: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        first = PreactivationBlock(in_channels, channels, stride)
        self.layer = nn.Sequential(
            first, *[PreactivationBlock(channels, channels, 1) for _ in range(blocks - 1)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class CifarWideResNet(CifarNet):
    """WRN-d-k: three groups, 16k, 32k and 64k wide, with a last batch norm and ReLU as the tail.

    Features are the raw sums of each group. A pre-activation feature is that sum after the batch norm that
    comes next; as in RepDistiller this is a second pass through that batch norm, which in training mode also
    counts a second time in its running statistics.

    Args:
        depth: d = 6n + 4, for n blocks per group.
        factor: k, the widening factor.
        num_classes: Classes N.
        in_chans: Channels of the images.
    """

    initialise = staticmethod(he_normal_unbiased)

    def __init__(self, depth: int, factor: int, num_classes: int = 100, in_chans: int = 3) -> None:
        widths = (16, 16 * factor, 32 * factor, 64 * factor)
        layout = Layout(
            stem=("conv1",),
            stages=(("block1",), ("block2",), ("block3",)),
            tail=("bn1", "relu"),
            classifier="fc",
            widths=widths,
            strides=(1, 1, 2, 2),
            pooled_width=widths[-1],
            branch_tail=("bn", "relu"),
        )
        super().__init__(layout, num_classes)
        self.blocks = (depth - 4) // 6
        self.build(in_chans)

    def make_stem(self, in_channels: int) -> list[nn.Module]:
        """A bare 3x3 convolution; the first block brings batch norm and ReLU."""
        return [conv(in_channels, self.layout.widths[0], 3)]

    def make_stage(self, index: int, in_channels: int, stride: int) -> list[nn.Module]:
        """One group of pre-activation blocks."""
        return [Group(self.blocks, in_channels, self.layout.widths[index], stride)]

    def make_tail(self) -> list[nn.Module]:
        """Batch norm and ReLU of the last group's raw sum."""
        return [nn.BatchNorm2d(self.layout.widths[-1]), nn.ReLU()]

    def preactivate(self, index: int, output: Tensor, before: Tensor) -> Tensor:
        """The group's raw sum after the batch norm that comes next."""
        following = ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")[index - 1]
        normalised: Tensor = module_at(self, following)(output)
        return normalised


register_family(
    CifarWideResNet,
    {
        f"wrn_{depth}_{factor}_cifar": {"depth": depth, "factor": factor}
        for depth in (16, 40)
        for factor in (1, 2)
    },
    stages=3,
    first_conv="conv1",
    classifier="fc",
)
