"""How images reach a trained network, noted beside its weights for those who use it elsewhere."""

from __future__ import annotations

from typing import Any

from torch import nn

from tutelage.data import ImageData, ResidentData, ResizedViews, StreamData, dataset_info
from tutelage.recipes import Recipe
from tutelage.training.loading import image_size
from tutelage.training.preprocessing import Renormalise, Resize


def shown(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    """Size, cut and interpolation of the images that a network is evaluated on.

    Returns:
        ``image_size`` (H, W), ``crop_pct`` (share of the resized side that is shown) and ``interpolation``,
        in timm's words; ``class_names`` where the dataset's name alone doesn't tell them.
    """
    crop, interpolation = 1.0, "bicubic"
    if isinstance(data, StreamData):
        crop, interpolation = recipe.data.crop_share, "bilinear"
    elif isinstance(data, ResidentData) and isinstance(data.augment, ResizedViews):
        crop = data.augment.crop_share
    known = dataset_info(recipe.data.name).class_names
    names = {} if known == data.info.class_names else {"class_names": list(data.info.class_names)}
    return {"image_size": list(image_size(data)), "crop_pct": crop, "interpolation": interpolation, **names}


def own_wish(preprocess: nn.Module | None) -> dict[str, Any]:
    """What a network wants otherwise than its images come: ``mean``, ``std``, ``image_size``; or nothing."""
    wish: dict[str, Any] = {}
    for module in preprocess.modules() if preprocess is not None else ():
        if isinstance(module, Renormalise):
            mean, std = module.wanted
            wish |= {"mean": list(mean), "std": list(std)}
        if isinstance(module, Resize):
            wish["image_size"] = list(module.sides)
    return wish
