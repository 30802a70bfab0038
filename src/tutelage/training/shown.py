"""How images reach a trained network, noted beside its weights for those who use it elsewhere."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from tutelage.data import ImageData, ResidentData, ResizedViews, StreamData, dataset_info
from tutelage.recipes import Recipe
from tutelage.training.loading import image_size
from tutelage.training.preprocessing import Renormalise, Resize, sidecar_of


def shown(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    """Size, cut and interpolation of the images that a network is evaluated on.

    Returns:
        ``image_size`` (H, W), ``crop_pct`` (share of the resized side that is shown) and ``interpolation``,
        in timm's words; ``class_names`` where the dataset's name alone doesn't tell them.
    """
    crop, interpolation = 1.0, "bicubic"
    if isinstance(data, StreamData):
        crop, interpolation = recipe.data.crop_share, evaluation_filter(recipe.data.interpolation)
    elif isinstance(data, ResidentData) and isinstance(data.augment, ResizedViews):
        crop, interpolation = data.augment.crop_share, evaluation_filter(data.augment.interpolation)
    known = dataset_info(recipe.data.name).class_names
    names = {} if known == data.info.class_names else {"class_names": list(data.info.class_names)}
    return {"image_size": list(image_size(data)), "crop_pct": crop, "interpolation": interpolation, **names}


def evaluation_filter(interpolation: str) -> str:
    """Filter that images are resized with in evaluation, where training has ``interpolation``."""
    return "bilinear" if interpolation == "bilinear" else "bicubic"


def unlike_noted(recipe: Recipe, data: ImageData) -> str:
    """A warning where the teacher's weights were trained for images resized by another filter; else empty."""
    teacher = recipe.teacher
    resized = isinstance(data, StreamData) or isinstance(getattr(data, "augment", None), ResizedViews)
    if teacher is None or not teacher.has_weights or not resized:
        return ""
    noted = sidecar_of(teacher).get("interpolation")
    if noted is None and teacher.pretrained:
        noted = getattr(timm.get_pretrained_cfg(teacher.name), "interpolation", None)
    gets = shown(recipe, data)["interpolation"]
    if noted in (None, gets):
        return ""
    return (
        f"the teacher '{teacher.name}' is for images resized {noted}, but gets {gets} ones in evaluation, "
        "which may cost it some accuracy (data.interpolation changes it)"
    )


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
