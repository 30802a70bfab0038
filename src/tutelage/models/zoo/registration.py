"""Telling timm of a family's networks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from tutelage.errors import UserError
from tutelage.models.zoo.base import CifarNet

CIFAR_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR_STD = (0.2675, 0.2565, 0.2761)
CIFAR = {"input_size": (3, 32, 32), "num_classes": 100, "mean": CIFAR_MEAN, "std": CIFAR_STD, "crop_pct": 1.0}
IMAGENET = {
    "input_size": (3, 224, 224),
    "num_classes": 1000,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
}

_registered: list[str] = []


def own_names() -> tuple[str, ...]:
    """Names of all networks that the zoo added to timm's, in the order of registration."""
    return tuple(_registered)


def register_family(
    family: Callable[..., CifarNet],
    variants: Mapping[str, Mapping[str, Any]],
    stages: int,
    first_conv: str,
    classifier: str,
) -> None:
    """Register a family of CIFAR networks, see `register_networks`.

    Args:
        family: The class.
        variants: Name of each network and the constructor arguments that make it.
        stages: Number of stages; ``features_only=True`` gives the stem's feature and one of each stage.
        first_conv: Path of the first convolution.
        classifier: Path of the linear layer.
    """
    configuration = {**CIFAR, "first_conv": first_conv, "classifier": classifier}
    features = {"feature_cls": "getter", "out_indices": tuple(range(stages + 1))}
    register_networks(family.__module__, family, variants, configuration, features)


def register_networks(
    module: str,
    family: Callable[..., nn.Module],
    variants: Mapping[str, Mapping[str, Any]],
    configuration: Mapping[str, Any],
    features: Mapping[str, Any],
    crops: Sequence[float] = (),
) -> None:
    """Make ``timm.create_model(name, num_classes=N)`` build each of a family's networks.

    Each network also becomes a function of the module, as in timm's own files.

    Args:
        module: Name of the module.
        family: The class.
        variants: Name of each network and the constructor arguments that make it, which a caller's replace.
        configuration: What ``pretrained_cfg`` says of each of them.
        features: How timm makes ``features_only=True`` of them.
        crops: ``crop_pct`` of each of them, where it differs from one to the other.
    """
    home = sys.modules[module]
    own = [{**configuration, "crop_pct": crop} for crop in crops] or [dict(configuration)] * len(variants)
    known = vars(home).setdefault("default_cfgs", {})
    known.update(generate_default_cfgs(dict(zip(variants, own, strict=True))))
    for name, settings in variants.items():
        entry = _entry_point(family, name, settings, features)
        entry.__module__ = module
        setattr(home, name, register_model(entry))
        _registered.append(name)


def _entry_point(
    family: Callable[..., nn.Module], name: str, settings: Mapping[str, Any], features: Mapping[str, Any]
) -> Callable[..., Any]:
    def build(pretrained: bool = False, **kwargs: Any) -> Any:
        noted = (kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
        if pretrained and not any(map(_names_weights, noted)):
            raise UserError(
                f"no weights come with '{name}'; use pretrained=False and load a weights file into it, or "
                "name the file in pretrained_cfg_overlay"
            )
        given = {**settings, **kwargs}
        return build_model_with_cfg(family, name, pretrained, feature_cfg=dict(features), **given)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"The network `{name}`; takes ``num_classes`` and ``in_chans``."
    return build


def _names_weights(configuration: Any) -> bool:
    """Whether timm's configuration says where weights are; the name of known ones (a tag) says nothing."""
    sources = ("state_dict", "file", "url", "hf_hub_id")
    return isinstance(configuration, Mapping) and any(configuration.get(source) for source in sources)
