"""Weights of a network that timm has too, under other names: the makers' originals, torchvision's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any, NamedTuple

import timm
from torch import Tensor, nn

from tutelage.models.torchvision_names import in_timms_names

Convert = Callable[..., Any]


class Translation(NamedTuple):
    """Weights under a network's own names.

    Attributes:
        state: Keys -> tensors.
        how: Who translated, for messages.
    """

    state: dict[str, Tensor]
    how: str


def translations(state: Mapping[str, Tensor], model: nn.Module) -> Iterator[Translation]:
    """What ``state`` may be under the names of ``model``; whether it fits is for the caller to see.

    timm carries a conversion for each family whose originals are named otherwise (Facebook's ConvNeXt and
    ResMLP, Microsoft's Swin, DeiT III, DINO, ...). It also resamples position embeddings and patch embeddings
    to the network's image size.

    Args:
        state: Plain keys -> tensors; not changed.
        model: A network of timm.
    """
    renamed = in_timms_names(state)
    if renamed is not None:
        yield Translation(renamed, "renamed from torchvision's names")
    for convert, settings in _conversions(model):
        found = _tried(convert, state, model, settings)
        if found is not None:
            yield Translation(found, f"converted by timm's own rule for {type(model).__name__}")


def _conversions(model: nn.Module) -> Iterator[tuple[Convert, dict[str, Any]]]:
    """timm's conversions for this network, and the settings that they may need."""
    config = getattr(model, "pretrained_cfg", None) or {}
    architecture = str(config.get("architecture", ""))
    modules = [type(model).__module__]
    if timm.is_model(architecture):
        modules.append(timm.model_entrypoint(architecture).__module__)
    for name in dict.fromkeys(modules):
        convert = getattr(sys.modules.get(name), "checkpoint_filter_fn", None)
        if convert is not None:
            yield convert, {}
            if "adapt_layer_scale" in signature(convert).parameters:  # DeiT III
                yield convert, {"adapt_layer_scale": True}


def _tried(
    convert: Convert, state: Mapping[str, Tensor], model: nn.Module, settings: dict[str, Any]
) -> dict[str, Tensor] | None:
    """What the conversion makes of the weights; None where they are none that it understands."""
    try:
        found = convert(dict(state), model, **settings)
    except Exception:  # it takes the weights for what they are not, and may stumble anywhere
        return None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        return None
    return {str(key): value for key, value in found.items()}
