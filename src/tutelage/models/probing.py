"""Looking at a network without changing it: no batch-norm update, no random numbers used up, no gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tutelage.errors import UserError

Size = int | Sequence[int]
"""A side S, (H, W) or (C, H, W)."""


def image_shape(size: Size) -> tuple[int, int, int]:
    """The (C, H, W) that ``size`` stands for; three channels where it names none.

    Raises:
        UserError: It is none of the three forms, or a number is below 1.
    """
    numbers = (size, size) if isinstance(size, int) else tuple(size)
    shape = (3, *numbers) if len(numbers) == 2 else numbers
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"an image size is a side, (H, W) or (C, H, W) of positive numbers, not {size}")
    return shape[0], shape[1], shape[2]


def blank_image(model: nn.Module, size: Size) -> Tensor:
    """One black image [1, C, H, W] where the model's weights are, in their type."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(1, *image_shape(size), device=weight.device, dtype=weight.dtype)


def arriving(preprocess: nn.Module | None, model: nn.Module, size: Size) -> tuple[int, int, int]:
    """The (C, H, W) that reaches ``model`` where images of ``size`` go through ``preprocess`` first."""
    if preprocess is None:
        return image_shape(size)
    with undisturbed(preprocess):
        channels, height, width = preprocess(blank_image(model, size)).shape[1:]
    return channels, height, width


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode and the random state are put back at the end.

    The modes are put back module by module, because parts of a network may stand in different ones.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        for module, _ in modes:
            module.training = False
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
