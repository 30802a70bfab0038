"""CIFAR VGG networks with one linear layer.

Source: Simonyan and Zisserman 2015, as in RepDistiller ``models/vgg.py``; the network without batch norm is
DPCD's ``vgg8``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.models.zoo.base import CifarNet, Layout, he_normal, small_linear
from tutelage.models.zoo.registration import register_family

_WIDTHS = (64, 128, 256, 512, 512)


class PoolOfLargeImages(nn.Module):
    """Halves maps 8 high and passes others on.

    The reference pools before the last group only for images 64 high. Seen from that group this is a height
    of 8, so here images 65 to 71 high are pooled too.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if x.shape[-2] == 8 else x


class CifarVgg(CifarNet):
    """Five groups of 3x3 convolutions with bias; group 0 is the stem, groups 1 to 4 are the stages.

    A pooling layer stands before groups 1, 2 and 3, and before group 4 for images 64 high. Features are the
    groups' outputs after ReLU.

    Args:
        convolutions: Convolutions per group.
        batch_norm: Whether each convolution is followed by a batch norm.
        num_classes: Classes N.
        in_chans: Channels of the images.
    """

    def __init__(
        self, convolutions: Sequence[int], batch_norm: bool = True, num_classes: int = 100, in_chans: int = 3
    ) -> None:
        layout = Layout(
            stem=("block0", "relu0"),
            stages=tuple((f"pool{index}", f"block{index}", f"relu{index}") for index in range(1, 5)),
            tail=(),
            classifier="classifier",
            widths=_WIDTHS,
            strides=(1, 2, 2, 2, 1),
            pooled_width=_WIDTHS[-1],
            branch_stages=((0,), (1,), (2,), (3, 4)),
        )
        super().__init__(layout, num_classes)
        self.convolutions = tuple(convolutions)
        self.batch_norm = batch_norm
        self.build(in_chans)

    def make_stem(self, in_channels: int) -> list[nn.Module]:
        """The convolutions of group 0 and their last ReLU."""
        return self._group(0, in_channels)

    def make_stage(self, index: int, in_channels: int, stride: int) -> list[nn.Module]:
        """A pooling layer where the stride is 2, the convolutions, and their last ReLU."""
        pool = [nn.MaxPool2d(stride)] if stride > 1 else []
        return [*pool, *self._group(index, in_channels)]

    def own_stage(self, index: int) -> list[nn.Module]:
        """As `make_stage`, but where that has no pooling layer large images are pooled all the same."""
        stage = super().own_stage(index)
        return stage if self.layout.strides[index] > 1 else [PoolOfLargeImages(), *stage]

    def _group(self, index: int, in_channels: int) -> list[nn.Module]:
        width = self.layout.widths[index]
        layers: list[nn.Module] = []
        for depth in range(self.convolutions[index]):
            layers.append(nn.Conv2d(width if depth else in_channels, width, 3, padding=1))
            if self.batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
        return [nn.Sequential(*layers[:-1]), layers[-1]]

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """He-normal convolutions, linear weights of standard deviation 0.01, biases 0."""
        he_normal(module)
        small_linear(module)

    @classmethod
    def initialise_branch(cls, module: nn.Module) -> None:
        """PyTorch's defaults, because HSAKD never applies the starting weights that it defines for these."""


register_family(
    CifarVgg,
    {
        "vgg8_cifar": {"convolutions": (1, 1, 1, 1, 1)},
        "vgg8_nobn_cifar": {"convolutions": (1, 1, 1, 1, 1), "batch_norm": False},
        "vgg11_cifar": {"convolutions": (1, 1, 2, 2, 2)},
        "vgg13_cifar": {"convolutions": (2, 2, 2, 2, 2)},
        "vgg16_cifar": {"convolutions": (2, 2, 3, 3, 3)},
        "vgg19_cifar": {"convolutions": (2, 2, 4, 4, 4)},
    },
    stages=4,
    first_conv="block0.0",
    classifier="classifier",
)
