"""What a network's images go through before its first layer: another size, another normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.data import dataset_info
from tutelage.errors import UserError
from tutelage.models.pretrained import published_facts
from tutelage.models.probing import image_shape
from tutelage.models.weights import read_sidecar
from tutelage.recipes import ModelRecipe, Recipe

RGB = tuple[float, float, float]
Sides = tuple[int, int]


def normalisation(recipe: Recipe) -> tuple[RGB, RGB]:
    """Mean and std that images get: the recipe's, else the weights' own, else the dataset's.

    Weights carry their normalisation in their sidecar. A student trained from scratch adapts to any, so
    the teacher's is used for both; a student with weights of its own keeps its own, see `preprocessing`.
    """
    info = dataset_info(recipe.data.name)
    if (recipe.data.mean is None) != (recipe.data.std is None):
        raise UserError("data.mean and data.std belong together; give both or neither")
    if recipe.data.mean is not None and recipe.data.std is not None:
        return recipe.data.mean, recipe.data.std
    for part in (recipe.student, recipe.teacher):
        own = own_normalisation(part)
        if own is not None:
            return own
    return info.mean, info.std


def own_normalisation(part: ModelRecipe | None) -> tuple[RGB, RGB] | None:
    """The normalisation that a network's weights want: noted beside them, or timm's of pretrained ones.

    None where nothing is known, or the recipe gives the network the data's all the same.
    """
    if part is None or not part.own_normalisation:
        return None
    facts = sidecar_of(part)
    if part.pretrained and facts.get("mean") is None:
        published = published_facts(part.name)
        facts = {} if published is None else published._asdict()
    mean, std = facts.get("mean"), facts.get("std")
    if mean is None or std is None:
        return None
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def own_size(part: ModelRecipe, frozen: bool, given: Sides) -> Sides:
    """(H, W) of the images that a network gets.

    Args:
        part: Of the recipe.
        frozen: Whether its weights stay as they are, so that the side they were trained at is the right one.
        given: (H, W) of the data's images.
    """
    if part.image_size is not None:
        return part.image_size, part.image_size
    noted = sidecar_of(part).get("image_size") if frozen else None
    return given if noted is None else image_shape(noted)[-2:]


def sidecar_of(part: ModelRecipe | None) -> dict[str, Any]:
    """Facts noted beside a model's weights; empty without weights or sidecar."""
    return read_sidecar(Path(part.weights)) if part is not None and part.weights is not None else {}


def preprocessing(
    given: tuple[RGB, RGB], own: tuple[RGB, RGB] | None, size: Sides, wanted: Sides
) -> nn.Module | None:
    """What turns the data's images into those that a network wants; None where they are that already.

    Args:
        given: Mean and std of the data's images.
        own: Mean and std that the network wants; None takes any.
        size: (H, W) of the data's images.
        wanted: (H, W) that the network wants.
    """
    steps: list[nn.Module] = []
    if wanted != size:
        steps.append(Resize(wanted))
    if own is not None and own != given:
        steps.append(Renormalise(given, own))
    return nn.Sequential(*steps) if len(steps) > 1 else steps[0] if steps else None


def behind(preprocess: nn.Module | None, model: nn.Module) -> nn.Module:
    """``model`` as it sees images through ``preprocess``."""
    return model if preprocess is None else nn.Sequential(preprocess, model)


class Resize(nn.Module):
    """Whole images in another size: bicubic, with antialiasing where they shrink.

    This is the filter that evaluation uses on resized data (`data.ResizedViews`), but on normalised numbers
    and so without rounding to bytes, and without a crop. It is a fixed linear map: deterministic, and the
    same in a compiled step.
    """

    def __init__(self, sides: Sides) -> None:
        """Args:
        sides: (H, W) of the result.
        """
        super().__init__()
        self.sides = sides

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H', W'] -> [B, 3, H, W]."""
        return F.interpolate(images, self.sides, mode="bicubic", antialias=True)

    def extra_repr(self) -> str:
        """The sides."""
        return f"{self.sides[0]}x{self.sides[1]}"


class Renormalise(nn.Module):
    """Turns images normalised one way into images normalised another way: an affine map per channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, given: tuple[RGB, RGB], wanted: tuple[RGB, RGB]) -> None:
        """Args:
        given: Mean and std the images come with.
        wanted: Mean and std the network was trained with.
        """
        super().__init__()
        self.wanted = wanted
        (mean, std), (own_mean, own_std) = [
            [torch.tensor(part, dtype=torch.float64).view(1, 3, 1, 1) for part in pair]
            for pair in (given, wanted)
        ]
        self.register_buffer("scale", (std / own_std).float(), persistent=False)
        self.register_buffer("shift", ((mean - own_mean) / own_std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> the same, renormalised."""
        return images * self.scale + self.shift
