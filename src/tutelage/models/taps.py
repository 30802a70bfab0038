"""Where a network's stages end and begin, for the zoo's and timm's networks, without changing their forward.

Conventions of OFA-KD and PAT, in timm's numbering: a hierarchical network has the four stages before its
strides 8, 16, 32 and its end; a network of equal blocks is cut 2-2-6-2 as Swin-T is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from timm.models.efficientnet import EfficientNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.zoo import CifarNet

STAGES = 4
"""Stages of a network that is not of the zoo."""


@dataclass(frozen=True)
class Stage:
    """One stage of a network.

    Attributes:
        index: Its feature's position in ``feature_info``, which is the index for ``forward_intermediates``.
        channels: Channels of its feature.
        reduction: Image side divided by the feature's side.
        module: Path of the module that returns its feature.
        boundary: Path of the module whose input is the stage's input, so that something put in front of that
            module stands between this stage and the one before; None where no single module is.
        final: The feature is what ``forward_features`` returns instead of the entry at ``index``.
    """

    index: int
    channels: int
    reduction: int
    module: str
    boundary: str | None
    final: bool = False


@dataclass(frozen=True)
class Taps:
    """The stages of a network and how its features are had.

    Attributes:
        stages: First to last.
        native: ``forward_intermediates`` gives the features; otherwise hooks on `Stage.module` do.
        prefix_tokens: Tokens before the patches (class, distillation, registers).
        tells_prefix: ``forward_intermediates`` hands these over too; CaiT, for one, has none at its stages.
        channels_last: Maps inside the network are [B, H, W, C].
        stem: Index of the feature in front of the first stage; None where there is none.
    """

    stages: tuple[Stage, ...]
    native: bool
    prefix_tokens: int = 0
    tells_prefix: bool = False
    channels_last: bool = False
    stem: int | None = None

    @property
    def indices(self) -> list[int]:
        """The stages' indices for ``forward_intermediates``."""
        return [stage.index for stage in self.stages]

    @property
    def channels(self) -> list[int]:
        """Channels of the stages' features."""
        return [stage.channels for stage in self.stages]


def describe_taps(model: nn.Module) -> Taps:
    """Find the stages of ``model``.

    - The zoo: features 1 to L; feature 0 is the stem's.
    - Equal blocks (ViT, DeiT, Mixer, ResMLP, ...): four groups of blocks, see `split_blocks`.
    - Any other: the last four entries of ``feature_info``, which leaves out the stem's where it is listed.

    EfficientNets (MobileNetV2 is one in timm) end their last stage after the head convolution, where the
    reference has it (1280 channels in MobileNetV2).

    Raises:
        UserError: The network names no features; the sentence says what it lacks.
    """
    info = getattr(model, "feature_info", None)
    intermediates = getattr(model, "forward_intermediates", None)
    native = callable(intermediates)
    if not isinstance(info, list) or not info:
        lacking = "'feature_info'" if native else "both 'forward_intermediates' and 'feature_info'"
        raise UserError(
            f"the stages of {type(model).__name__} can't be found, because it lacks {lacking}; take a "
            "network of timm or the zoo, or a method that needs no stages (kd, dkd, dist)"
        )
    equal_blocks = _has_equal_blocks(info)
    if isinstance(model, CifarNet):
        stages = _zoo_stages(model)
    elif equal_blocks:
        stages = _block_stages(model, info)
    else:
        stages = _hierarchical_stages(model, info)
    missing = [stage.module for stage in stages if _find(model, stage.module) is None]
    if missing and not native:
        raise UserError(
            f"the stages of {type(model).__name__} can't be tapped, because it lacks 'forward_intermediates' "
            f"and has no module '{missing[0]}'; take a method that needs no stages (kd, dkd, dist)"
        )
    prefix_tokens = int(getattr(model, "num_prefix_tokens", 0) or 0)
    options = signature(intermediates).parameters if callable(intermediates) else {}
    return Taps(
        stages,
        native,
        prefix_tokens=prefix_tokens,
        tells_prefix=prefix_tokens > 0 and "return_prefix_tokens" in options,
        channels_last=str(getattr(model, "output_fmt", "NCHW")) == "NHWC",
        stem=None if equal_blocks or stages[0].index == 0 else stages[0].index - 1,
    )


def split_blocks(depth: int) -> list[int]:
    """Lengths of the stages that a network of ``depth`` equal blocks is cut into.

    12 blocks are cut 2-2-6-2 as in Swin-T and 24 are cut 2-2-18-2 as in Swin-B; other depths keep the
    proportions of the former. Fewer than five blocks are a stage each.
    """
    if depth <= STAGES:
        return [1] * depth
    short = 2 if depth == 24 else max(1, round(depth / 6))
    return [short, short, depth - 3 * short, short]


def as_map(feature: Tensor, taps: Taps) -> Tensor:
    """A feature as the network has it, as a map [B, C, H, W].

    Args:
        feature: Tokens [B, P + H * W, C] with P = ``taps.prefix_tokens`` and H = W, or a map.
        taps: Of the network that it comes from.

    Raises:
        UserError: The tokens don't form a square.
    """
    if feature.ndim == 4:
        return feature.permute(0, 3, 1, 2) if taps.channels_last else feature
    patches = feature[:, taps.prefix_tokens :]
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise UserError(f"{patches.shape[1]} tokens don't form a square map; give the network square images")
    return patches.transpose(1, 2).unflatten(2, (side, side))


def _zoo_stages(model: CifarNet) -> tuple[Stage, ...]:
    return tuple(
        Stage(index, entry["num_chs"], entry["reduction"], entry["module"], names[0])
        for index, (entry, names) in enumerate(
            zip(model.feature_info[1:], model.layout.stages, strict=True), start=1
        )
    )


def _has_equal_blocks(info: Sequence[dict[str, Any]]) -> bool:
    return len(info) > STAGES and len({(entry["num_chs"], entry["reduction"]) for entry in info}) == 1


def _block_stages(model: nn.Module, info: Sequence[dict[str, Any]]) -> tuple[Stage, ...]:
    stages, start = [], 0
    for length in split_blocks(len(info)):
        last = info[start + length - 1]
        boundary = _known(model, info[start].get("module"))
        stages.append(
            Stage(start + length - 1, last["num_chs"], last["reduction"], last.get("module", ""), boundary)
        )
        start += length
    return tuple(stages)


def _hierarchical_stages(model: nn.Module, info: Sequence[dict[str, Any]]) -> tuple[Stage, ...]:
    first = max(0, len(info) - STAGES)
    paths = [entry.get("module", "") for entry in info]
    stages = []
    for index in range(first, len(info)):
        entry = info[index]
        stem_before = index == first
        boundary = _boundary(model, paths[index], paths[index - 1] if index else None, stem_before)
        shared = paths.count(paths[index]) > 1
        stages.append(
            Stage(index, entry["num_chs"], entry["reduction"], paths[index], None if shared else boundary)
        )
    if isinstance(model, EfficientNet):
        last = stages[-1]
        stages[-1] = Stage(last.index, model.num_features, last.reduction, "bn2", last.boundary, final=True)
    return tuple(stages)


def _boundary(model: nn.Module, own: str, before: str | None, first: bool) -> str | None:
    """The module that receives what the stage receives.

    Args:
        model: The network.
        own: Path of the module that ends the stage.
        before: Path of the module that ends the stage before it (or the stem).
        first: It is the first stage, and what is before it is a stem.
    """
    if isinstance(model, SwinTransformer | SwinTransformerV2):
        # Patches are merged at the start of a layer; the stage's input is what the merging gives.
        return _known(model, f"{own}.blocks.0")
    before = before or ""
    parent, parent_before = own.rpartition(".")[0], before.rpartition(".")[0]
    candidate: str | None = own
    if before and parent and parent == parent_before:
        candidate = _next_sibling(model, before)
    elif parent:
        inside_too = before.startswith(f"{parent}.")
        candidate = None if inside_too else _first_child(model, parent)
    elif parent_before and not first:
        candidate = _next_sibling(model, before) or own
    return _known(model, candidate) if candidate and _in_a_row(model, candidate) else None


def _next_sibling(model: nn.Module, path: str) -> str | None:
    parent, _, name = path.rpartition(".")
    container = _find(model, parent)
    names = [child for child, _ in container.named_children()] if container is not None else []
    following = names[names.index(name) + 1 :] if name in names else []
    return f"{parent}.{following[0]}" if following else None


def _first_child(model: nn.Module, path: str) -> str | None:
    container = _find(model, path)
    names = [child for child, _ in container.named_children()] if container is not None else []
    return f"{path}.{names[0]}" if names else None


def _in_a_row(model: nn.Module, path: str) -> bool:
    """Whether all modules around ``path`` run their parts one after the other."""
    parts = path.split(".")[:-1]
    around = [_find(model, ".".join(parts[:length])) for length in range(1, len(parts) + 1)]
    return all(isinstance(module, nn.Sequential | nn.ModuleList) for module in around)


def _known(model: nn.Module, path: str | None) -> str | None:
    return path if path and _find(model, path) is not None else None


def _find(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path) if path else None
    except AttributeError:
        return None
