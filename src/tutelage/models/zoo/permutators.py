"""Vision Permutator (ViP): linear layers over rows and over columns, a slice of the channels at a time.

Source: Hou et al. 2021, arXiv 2106.12368, as in OFAKD ``custom_model/vip.py``. It takes images of 224 x 224
alone; here others work where the maps' sides divide the channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import Mlp
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.zoo.registration import IMAGENET, register_networks
from tutelage.models.zoo.staged import MixingBlock, StagedNet, blend


class PermuteMixer(nn.Module):
    """Linear layers along H, W and the channels, blended.

    Along an axis of side L the C channels are cut into L segments of C / L; a row's L positions and the
    channels of one segment together are the C inputs of the layer, which is the same for all segments.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp_c = nn.Linear(width, width, bias=False)
        self.mlp_h = nn.Linear(width, width, bias=False)
        self.mlp_w = nn.Linear(width, width, bias=False)
        self.reweight = Mlp(width, width // 4, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` to ``[B, H, W, C]``.

        Raises:
            UserError: H or W doesn't divide C.
        """
        parts = (along(x, 1, self.mlp_h), along(x, 2, self.mlp_w), self.mlp_c(x))
        return self.proj(blend(parts, self.reweight, channels=3))


def along(x: Tensor, axis: int, mix: nn.Module) -> Tensor:
    """Apply ``mix`` to positions along ``axis`` (1 or 2) and segments of channels, see `PermuteMixer`.

    Raises:
        UserError: The side doesn't divide the channels.
    """
    side, channels = x.shape[axis], x.shape[3]
    if channels % side:
        raise UserError(
            f"a Vision Permutator's map has a side of {side}, which doesn't divide its {channels} channels; "
            "choose another image size"
        )
    turned = x.unflatten(3, (side, -1)).transpose(axis, 3)
    mixed = mix(turned.flatten(3, 4)).unflatten(3, (side, -1))
    return mixed.transpose(axis, 3).flatten(3, 4)


class Patches(nn.Module):
    """A convolution whose kernel is its stride S; channels last outside, unless ``images`` come in.

    Args:
        channels: Of what comes in.
        width: Of what goes out.
        side: S.
        images: What comes in is ``[B, C, H, W]``.
    """

    def __init__(self, channels: int, width: int, side: int, images: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, side, side)
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` or images to ``[B, H / S, W / S, C']``."""
        maps = x if self.images else x.permute(0, 3, 1, 2)
        return self.proj(maps).permute(0, 2, 3, 1)


class VisionPermutator(StagedNet):
    """Patches that don't overlap, and four stages, some with downsampling in front.

    Args:
        depths: Blocks of each stage.
        widths: Channels of each stage.
        strides: Side of the patches; then for each other stage that of what it is downsampled by.
        num_classes: Classes N.
        in_chans: Channels of the images.
        drop_rate: See `StagedNet`.
        drop_path_rate: See `StagedNet`.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        strides: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(depths, widths, strides, num_classes, drop_rate, drop_path_rate)
        self.build(Patches(in_chans, widths[0], strides[0], images=True), nn.LayerNorm(widths[-1]))

    def make_block(self, stage: int, number: int, drop_path: float) -> nn.Module:
        """A block of permuted linear layers."""
        width = self.widths[stage]
        return MixingBlock(PermuteMixer(width), Mlp(width, 3 * width), nn.LayerNorm, width, drop_path)

    def make_downsampling(self, channels: int, width: int, stride: int) -> nn.Module:
        """Patches of patches."""
        return Patches(channels, width, stride)


register_networks(
    __name__,
    VisionPermutator,
    {
        "vip_s14": {"depths": (4, 3, 8, 3), "widths": (384, 384, 384, 384), "strides": (14, 1, 1, 1)},
        "vip_s7": {"depths": (4, 3, 8, 3), "widths": (192, 384, 384, 384), "strides": (7, 2, 1, 1)},
        "vip_m7": {"depths": (4, 3, 14, 3), "widths": (256, 256, 512, 512), "strides": (7, 1, 2, 1)},
        "vip_l7": {"depths": (8, 8, 16, 4), "widths": (256, 512, 512, 512), "strides": (7, 2, 1, 1)},
    },
    {**IMAGENET, "first_conv": "patch_embed.proj", "classifier": "head"},
    {"feature_cls": "getter", "out_indices": (0, 1, 2, 3)},
    crops=(0.9, 0.9, 0.9, 0.875),
)
