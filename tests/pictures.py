"""Images for tests, as tensors and as Pillow has them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from PIL import Image
from torch import Tensor


def pictures(side: int = 32) -> Tensor:
    """Noise, smooth and flat images, dark and bright ones: `[10, 3, side, side]` uint8."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 3, side, side), generator=generator)
    along = torch.arange(side) * 32 // side
    ramp = along[None, :, None] * 5 + along * 2 + torch.tensor([0, 20, 9])[:, None, None]
    dark = torch.randint(3, 40, (2, 3, side, side), generator=generator)
    flat = torch.full((1, 3, side, side), 77)
    return torch.cat([noise, ramp[None], dark, flat, 255 - dark]).to(torch.uint8)


def to_pillow(image: Tensor) -> Image.Image:
    """`[3, H, W]` uint8 as an RGB image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(images: Iterable[Image.Image]) -> Tensor:
    """RGB images of one size as `[B, 3, H, W]` uint8."""
    shown = [
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
        for image in images
    ]
    return torch.stack(shown).permute(0, 3, 1, 2)
