"""Telling timm of a family's networks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from tutelage.errors import UserError
from tutelage.models.zoo.base import CifarNet

CIFAR_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR_STD = (0.2675, 0.2565, 0.2761)


def register_family(
    family: Callable[..., CifarNet],
    variants: Mapping[str, Mapping[str, Any]],
    stages: int,
    first_conv: str,
    classifier: str,
) -> None:
    """Make ``timm.create_model(name, num_classes=N)`` build each of a family's networks.

    Each network also becomes a function of the family's module, as in timm's own files.

    Args:
        family: The class.
        variants: Name of each network and the constructor arguments that make it.
        stages: Number of stages; ``features_only=True`` gives the stem's feature and one of each stage.
        first_conv: Path of the first convolution.
        classifier: Path of the linear layer.
    """
    module = sys.modules[family.__module__]
    configuration = {
        "input_size": (3, 32, 32),
        "num_classes": 100,
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
        "crop_pct": 1.0,
        "first_conv": first_conv,
        "classifier": classifier,
    }
    known = vars(module).setdefault("default_cfgs", {})
    known.update(generate_default_cfgs({name: configuration for name in variants}))
    for name, settings in variants.items():
        entry = _entry_point(family, name, settings, stages)
        entry.__module__ = module.__name__
        setattr(module, name, register_model(entry))


def _entry_point(
    family: Callable[..., CifarNet], name: str, settings: Mapping[str, Any], stages: int
) -> Callable[..., Any]:
    def build(pretrained: bool = False, **kwargs: Any) -> Any:
        if pretrained:
            raise UserError(
                f"no weights come with '{name}'; use pretrained=False and load a weights file into it"
            )
        features = {"feature_cls": "getter", "out_indices": tuple(range(stages + 1))}
        return build_model_with_cfg(family, name, False, feature_cfg=features, **settings, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"The network `{name}`; takes ``num_classes`` and ``in_chans``."
    return build
