"""MobileNetV2 at half width for CIFAR: two networks, which differ in the stem.

Source: Sandler et al. 2018, as in RepDistiller ``models/mobilenetv2.py`` (stem with stride 2) and in HSAKD
(stride 1, so that every map has twice the side).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from tutelage.models.zoo.base import CifarNet, Layout, conv, he_normal, small_linear
from tutelage.models.zoo.registration import register_family


class GroupSpec(NamedTuple):
    """A group of inverted residual blocks: widening inside, channels that leave it, number, first stride."""

    expansion: int
    channels: int
    repeats: int
    stride: int


_STEM_WIDTH = 16
_TAIL_WIDTH = 1280
_GROUPS = (
    GroupSpec(1, 8, 1, 1),
    GroupSpec(6, 12, 2, 1),
    GroupSpec(6, 16, 3, 2),
    GroupSpec(6, 32, 4, 2),
    GroupSpec(6, 48, 3, 1),
    GroupSpec(6, 80, 3, 2),
    GroupSpec(6, 160, 1, 1),
)
_STAGES = ((0, 1), (2,), (3, 4), (5, 6))
"""Which groups make a stage; each ends where the research code takes a feature."""


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a 3x3 depthwise convolution and a linear 1x1 projection.

    The input is added where the shape stays. The expansion is there even when it widens nothing.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.conv = nn.Sequential(
            *(conv(in_channels, inner, 1), nn.BatchNorm2d(inner), nn.ReLU()),
            *(conv(inner, inner, 3, stride, groups=inner), nn.BatchNorm2d(inner), nn.ReLU()),
            *(conv(inner, channels, 1), nn.BatchNorm2d(channels)),
        )
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class CifarMobileNetV2(CifarNet):
    """Seven groups in four stages, and a 1x1 convolution to 1280 channels as the tail.

    A stage ends in a linear bottleneck, so its feature has no activation and ``preact`` changes nothing.

    Args:
        stem_stride: Stride of the first convolution.
        classifier: Path of the linear layer: RepDistiller's is ``"classifier.0"``, HSAKD's ``"classifier"``.
        num_classes: Classes N.
        in_chans: Channels of the images.
    """

    def __init__(self, stem_stride: int, classifier: str, num_classes: int = 100, in_chans: int = 3) -> None:
        layout = Layout(
            stem=("conv1",),
            stages=tuple(tuple(f"blocks.{group}" for group in stage) for stage in _STAGES),
            tail=("conv2",),
            classifier=classifier,
            widths=(_STEM_WIDTH, *(_GROUPS[stage[-1]].channels for stage in _STAGES)),
            strides=(stem_stride, 1, 2, 2, 2),
            pooled_width=_TAIL_WIDTH,
            branch_tail=("conv2_",),
        )
        super().__init__(layout, num_classes)
        self.build(in_chans)

    def make_stem(self, in_channels: int) -> list[nn.Module]:
        """3x3 convolution with the stem's stride, batch norm, ReLU."""
        convolution = conv(in_channels, _STEM_WIDTH, 3, self.layout.strides[0])
        return [nn.Sequential(convolution, nn.BatchNorm2d(_STEM_WIDTH), nn.ReLU())]

    def make_stage(self, index: int, in_channels: int, stride: int) -> list[nn.Module]:
        """The stage's groups of inverted residual blocks; the stride is the first group's."""
        specs = [_GROUPS[group] for group in _STAGES[index - 1]]
        strides = [stride, *(spec.stride for spec in specs[1:])]
        groups: list[nn.Module] = []
        for spec, first_stride in zip(specs, strides, strict=True):
            first = InvertedResidual(in_channels, spec.channels, first_stride, spec.expansion)
            in_channels = spec.channels
            others = [
                InvertedResidual(in_channels, in_channels, 1, spec.expansion) for _ in range(spec.repeats - 1)
            ]
            groups.append(nn.Sequential(first, *others))
        return groups

    def make_tail(self) -> list[nn.Module]:
        """1x1 convolution to 1280 channels, batch norm, ReLU."""
        convolution = conv(self.layout.widths[-1], _TAIL_WIDTH, 1)
        return [nn.Sequential(convolution, nn.BatchNorm2d(_TAIL_WIDTH), nn.ReLU())]

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """He-normal convolutions, linear weights of standard deviation 0.01, biases 0."""
        he_normal(module)
        small_linear(module)


for _name, _stem_stride, _classifier in (
    ("mobilenetv2_cifar", 2, "classifier.0"),
    ("mobilenetv2_s1_cifar", 1, "classifier"),
):
    register_family(
        CifarMobileNetV2,
        {_name: {"stem_stride": _stem_stride, "classifier": _classifier}},
        stages=4,
        first_conv="conv1.0",
        classifier=_classifier,
    )
