"""Optimisers, built by timm."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.optim import list_optimizers as timm_optimisers
from torch import nn

from tutelage.errors import UserError, nearest
from tutelage.recipes.schema import OptimiserRecipe

_FUSED = {"sgd", "momentum", "adam", "adamw"}


def create_optimiser(module: nn.Module, recipe: OptimiserRecipe) -> torch.optim.Optimizer:
    """An optimiser over the parameters of ``module`` that require a gradient.

    Args:
        module: Networks and method parts that train.
        recipe: Name and settings; "sgd" is Nesterov, "momentum" is not, as timm names them.

    Raises:
        UserError: timm knows no such optimiser, or it doesn't take the settings.
    """
    known = [str(name) for name in timm_optimisers()]
    if recipe.name not in known:
        raise UserError(f"optimiser.name '{recipe.name}' is not known to timm{nearest(recipe.name, known)}")
    fused: dict[str, Any] = {"fused": True} if recipe.name in _FUSED else {}
    try:
        return create_optimizer_v2(
            module,
            opt=recipe.name,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            filter_bias_and_bn=not recipe.decay_all,
            **fused,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"optimiser '{recipe.name}' can't be made with these settings: {error}") from error


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same rate, times its own scale where timm set one."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
