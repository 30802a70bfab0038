"""torchvision's names for the networks that timm has too, turned into timm's.

Its ResNets are called as timm's are. Covered beside them are ConvNeXt, MobileNetV2, Swin and ViT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import accumulate

from torch import Tensor

MOBILENET_V2 = (1, 2, 3, 4, 3, 3, 1)
"""Blocks of each stage of MobileNetV2; torchvision numbers them through."""

SIGNS: dict[str, Callable[[str], str | None]]


def in_timms_names(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The same weights under timm's names.

    Args:
        state: A state dict as torchvision's networks have it.

    Returns:
        None where it is none of those that are known here.
    """
    found = [rename for sign, rename in SIGNS.items() if sign in state]
    if not found:
        return None
    named = {found[0](key): value for key, value in state.items()}
    # A ConvNeXt's layer scale is [C, 1, 1] there and [C] in timm.
    return {
        key: value.flatten() if key.endswith(".gamma") else value
        for key, value in named.items()
        if key is not None
    }


def _convnext(key: str) -> str:
    key = re.sub(r"^features\.0\.", "stem.", key)
    key = re.sub(r"^features\.([246])\.", lambda found: f"stages.{int(found[1]) // 2}.downsample.", key)
    key = re.sub(r"^features\.([1357])\.", lambda found: f"stages.{int(found[1]) // 2}.blocks.", key)
    parts = {
        "layer_scale": "gamma",
        "block.0.": "conv_dw.",
        "block.2.": "norm.",
        "block.3.": "mlp.fc1.",
        "block.5.": "mlp.fc2.",
        "classifier.0.": "head.norm.",
        "classifier.2.": "head.fc.",
    }
    return _exchanged(key, parts)


def _swin(key: str) -> str | None:
    if key.endswith("relative_position_index"):
        return None  # made anew by timm
    key = re.sub(r"^features\.([246])\.", lambda found: f"layers.{int(found[1]) // 2}.downsample.", key)
    key = re.sub(r"^features\.([1357])\.", lambda found: f"layers.{int(found[1]) // 2}.blocks.", key)
    parts = {
        "features.0.0.": "patch_embed.proj.",
        "features.0.2.": "patch_embed.norm.",
        "mlp.0.": "mlp.fc1.",
        "mlp.3.": "mlp.fc2.",
        "head.": "head.fc.",
    }
    return _exchanged(key, parts)


def _vit(key: str) -> str:
    parts = {
        "class_token": "cls_token",
        "conv_proj.": "patch_embed.proj.",
        "encoder.pos_embedding": "pos_embed",
        "encoder.layers.encoder_layer_": "blocks.",
        "encoder.ln.": "norm.",
        "ln_1.": "norm1.",
        "ln_2.": "norm2.",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj.": "attn.proj.",
        "mlp.0.": "mlp.fc1.",
        "mlp.3.": "mlp.fc2.",
        "linear_1.": "fc1.",
        "linear_2.": "fc2.",
        "heads.head.": "head.",
    }
    return _exchanged(key, parts)


def _mobilenet_v2(key: str) -> str:
    parts = {
        "features.0.0.": "conv_stem.",
        "features.0.1.": "bn1.",
        "features.18.0.": "conv_head.",
        "features.18.1.": "bn2.",
        "classifier.1.": "classifier.",
    }
    found = re.match(r"features\.(\d+)\.conv\.(.*)", key)
    if found is None:
        return _exchanged(key, parts)
    number, rest = int(found[1]) - 1, found[2]
    ends = list(accumulate(MOBILENET_V2))
    stage = sum(number >= end for end in ends)
    within = number - (ends[stage - 1] if stage else 0)
    first = {"0.0.": "conv_dw.", "0.1.": "bn1.", "1.": "conv_pw.", "2.": "bn2."}
    later = {
        "0.0.": "conv_pw.",
        "0.1.": "bn1.",
        "1.0.": "conv_dw.",
        "1.1.": "bn2.",
        "2.": "conv_pwl.",
        "3.": "bn3.",
    }
    return f"blocks.{stage}.{within}.{_beginning(rest, later if number else first)}"


def _exchanged(key: str, parts: Mapping[str, str]) -> str:
    """``key`` with each of ``parts`` exchanged where it begins a level."""
    for theirs, ours in parts.items():
        key = re.sub(rf"(^|\.){re.escape(theirs)}", rf"\g<1>{ours}", key)
    return key


def _beginning(key: str, parts: Mapping[str, str]) -> str:
    """``key`` with its beginning exchanged."""
    theirs = next((part for part in parts if key.startswith(part)), "")
    return parts.get(theirs, "") + key.removeprefix(theirs)


SIGNS = {
    "features.1.0.layer_scale": _convnext,
    "features.1.0.attn.qkv.weight": _swin,
    "encoder.pos_embedding": _vit,
    "features.18.1.running_mean": _mobilenet_v2,
}
"""A key that only the family's networks have, and how it is renamed."""
