"""Operations that change some images of a batch, without asking the device which."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def change(images: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *settings: Tensor) -> None:
    """Put ``operation(images, *settings)`` in the place of the ``chosen`` images.

    Where the choice is known on the host, only the chosen images are computed. On the images' own device
    nobody asks: all are computed, and the chosen ones taken. An image's result is the same either way.

    Args:
        images: `[B, 3, H, W]`, which are overwritten.
        chosen: `[B]` bool, on the CPU or on the images' device.
        operation: Treats each image by itself and keeps shape and type.
        settings: `[B, ...]` each, on the device of ``chosen``.
    """
    if chosen.device.type != "cpu":
        images.copy_(torch.where(chosen[:, None, None, None], operation(images, *settings), images))
        return
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        own = [_sent(setting[rows], images.device) for setting in settings]
        there = _sent(rows, images.device)
        images.index_copy_(0, there, operation(images.index_select(0, there), *own))


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Values from the CPU on ``device``, without waiting for what that is doing."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
