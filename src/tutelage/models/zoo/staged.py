"""What the MLP networks of OFA-KD share: patches, stages of blocks, a norm, a mean and a linear layer."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

from timm.layers import DropPath, SelectAdaptivePool2d, trunc_normal_
from torch import Tensor, nn

from tutelage.models.zoo.base import HeadedNet, choose_features, linear_head


class StagedNet(HeadedNet):
    """A network of patches and of stages of equal blocks with downsampling in between.

    A family says how its blocks and what stands between its stages are made (`make_block`,
    `make_downsampling`), and calls `build` at the end of its constructor. Names and their order are those of
    the published state dicts.

    Args:
        depths: Blocks of each stage.
        widths: Channels of each stage.
        strides: Of the patches, and of what stands in front of each other stage.
        num_classes: Classes N; 0 leaves out the linear layer.
        drop_rate: Dropout before the linear layer.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 in the first.

    Attributes:
        output_fmt: Layout of the maps inside the network, "NHWC" or "NCHW".
        feature_info: Per stage: ``num_chs``, ``reduction`` and the ``module`` that returns its feature.
    """

    output_fmt: str = "NCHW"

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__(widths[-1], num_classes, "head")
        self.depths, self.widths, self.strides = tuple(depths), tuple(widths), tuple(strides)
        self.drop_rate, self.drop_path_rate = drop_rate, drop_path_rate

    @abstractmethod
    def make_block(self, stage: int, number: int, drop_path: float) -> nn.Module:
        """Block ``number`` of stage ``stage``, both from 0."""

    @abstractmethod
    def make_downsampling(self, channels: int, width: int, stride: int) -> nn.Module:
        """What stands in front of a stage whose width or side differs from that of the one before."""

    def make_stage(self, blocks: Sequence[nn.Module]) -> nn.Sequential:
        """Blocks in a row."""
        return nn.Sequential(*blocks)

    def build(self, patch_embed: nn.Module, norm: nn.Module) -> None:
        """Make stages and head, register all parts in the order of the state dict, and initialise them."""
        total, made = sum(self.depths), 0
        network: list[nn.Module] = []
        self.stage_ends: list[int] = []
        for stage, (depth, width, stride) in enumerate(
            zip(self.depths, self.widths, self.strides, strict=True)
        ):
            before = self.widths[stage - 1] if stage else width
            if stage and (stride > 1 or width != before):
                network.append(self.make_downsampling(before, width, stride))
            rates = [self.drop_path_rate * (made + i) / max(total - 1, 1) for i in range(depth)]
            blocks = [self.make_block(stage, number, rate) for number, rate in enumerate(rates)]
            self.stage_ends.append(len(network))
            network.append(self.make_stage(blocks))
            made += depth
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": width, "reduction": reduction, "module": f"network.{end}"}
            for width, reduction, end in zip(
                self.widths, accumulate(self.strides, mul), self.stage_ends, strict=True
            )
        ]
        self.patch_embed = patch_embed
        self.network = nn.ModuleList(network)
        self.norm = norm
        self.global_pool = SelectAdaptivePool2d(pool_type="avg", flatten=True, input_fmt=self.output_fmt)
        self.head_drop = nn.Dropout(self.drop_rate)
        self.head = linear_head(self.num_features, self.num_classes)
        self.apply(self.initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the normed map before pooling, in the layout `output_fmt`."""
        x = self.patch_embed(x)
        for module in self.network:
            x = module(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """That map to logits ``[B, N]``, or to the pooled vector ``[B, num_features]`` (``pre_logits``)."""
        pooled = self.head_drop(self.global_pool(x))
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the stages, as timm's networks give them.

        Args:
            x: Images ``[B, 3, H, W]``.
            indices: Which stages, from 0; a number n means the last n, None all.
            norm: Apply the network's norm to the last stage's feature.
            stop_early: Run nothing after the last stage asked for.
            output_fmt: Only ``"NCHW"``.
            intermediates_only: Leave out the map, and the norm that makes it.

        Returns:
            What `forward_features` gives (the last feature, in the layout of the network, where
            ``stop_early`` ended the pass), and the features ``[B, C_l, H_l, W_l]`` in the network's order.

        Raises:
            UserError: ``output_fmt`` is another one.
        """
        take, last = choose_features(len(self.stage_ends), indices, stop_early, output_fmt)
        final = len(self.stage_ends) - 1
        x = self.patch_embed(x)
        features = []
        for position, module in enumerate(self.network[: self.stage_ends[last] + 1]):
            x = module(x)
            stage = self.stage_ends.index(position) if position in self.stage_ends else None
            if stage in take:
                feature = self.norm(x) if norm and stage == final else x
                features.append(feature.permute(0, 3, 1, 2) if self.output_fmt == "NHWC" else feature)
        if intermediates_only:
            return features
        return (self.norm(x) if last == final else x), features

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Linear weights from a truncated normal distribution of deviation 0.02, and biases 0."""
        if isinstance(module, nn.Linear):
            narrow(module)


class MixingBlock(nn.Module):
    """x + mix(norm(x)), then x + mlp(norm(x)), each left out at random for some samples.

    Args:
        attn: Mixes positions; its name is the published one.
        mlp: Mixes channels.
        norm: Makes a norm.
        width: Channels.
        drop_path: How often.
    """

    def __init__(
        self, attn: nn.Module, mlp: nn.Module, norm: Callable[[int], nn.Module], width: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = norm(width)
        self.attn = attn
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm(width)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ChannelsLast(nn.Sequential):
    """Blocks on maps ``[B, H, W, C]``, one after the other, for maps ``[B, C, H, W]`` outside."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, H, W]``."""
        inside: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return inside.permute(0, 3, 1, 2)


def blend(parts: Sequence[Tensor], reweight: nn.Module, channels: int) -> Tensor:
    """The parts' sum, each channel of each part weighted for each sample.

    The weights are a softmax over the P parts of what ``reweight`` makes of the mean of their sum over space.

    Args:
        parts: P maps of one shape, `[B, H, W, C]` or `[B, C, H, W]`.
        reweight: From C channels to C times P, a channel's P numbers side by side.
        channels: The dimension of the channels, 3 or 1.
    """
    space = tuple(axis for axis in (1, 2, 3) if axis != channels)
    total = sum(parts[1:], start=parts[0])
    scores = reweight(total.mean(space, keepdim=True)).unflatten(channels, (-1, len(parts)))
    shares = scores.softmax(channels + 1).unbind(channels + 1)
    weighted = [share * part for share, part in zip(shares, parts, strict=True)]
    return sum(weighted[1:], start=weighted[0])


def projection(convolution: nn.Conv2d, *following: nn.Module) -> nn.Sequential:
    """A convolution, a norm and an activation under their published names; what isn't given is left out."""
    names = ("proj", "norm", "act")
    return nn.Sequential(OrderedDict(zip(names, (convolution, *following), strict=False)))


def narrow(layer: Any) -> None:
    """Weights from a truncated normal distribution of deviation 0.02, biases 0."""
    trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
