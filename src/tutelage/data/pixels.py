"""Pillow's image operations for batches of 8-bit images, each image with a strength of its own.

Equal to Pillow's to the bit. Every function takes images `[B, 3, H, W]` uint8 and a strength `[B]` floating
point and returns images of the same shape; where an operation knows no strength it is ignored.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.data.affine import cubic_between

GREY = 128
"""What fills the space that a shifted image leaves."""


def invert(images: Tensor, strength: Tensor) -> Tensor:
    """255 - x."""
    return 255 - images


def solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Invert the values from the threshold on."""
    return torch.where(images >= _each(strength), 255 - images, images)


def solarize_add(images: Tensor, strength: Tensor) -> Tensor:
    """Add so much to the values below 128, up to 255."""
    lighter = (images.int() + _each(strength).int()).clamp(max=255).to(torch.uint8)
    return torch.where(images < 128, lighter, images)


def posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Keep so many of the upper bits; with none of them the image is black."""
    step = 2 ** (8 - _each(strength).int().clamp(0, 8))
    return (images.int() // step * step).to(torch.uint8)


def brightness(images: Tensor, strength: Tensor) -> Tensor:
    """Away from black by the factor 1 + strength."""
    return _blend(torch.zeros_like(images), images, strength)


def color(images: Tensor, strength: Tensor) -> Tensor:
    """Away from grey by the factor 1 + strength."""
    return _blend(_luminance(images).expand_as(images), images, strength)


def contrast(images: Tensor, strength: Tensor) -> Tensor:
    """Away from the mean brightness by the factor 1 + strength."""
    mean = _luminance(images).double().mean((1, 2, 3), keepdim=True).add(0.5).floor()
    return _blend(mean.to(torch.uint8).expand_as(images), images, strength)


def sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Away from the smoothed image by the factor 1 + strength; the outermost pixels are not smoothed."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5.0
    smooth = (F.conv2d(images.float(), kernel, groups=3) / 13).add(0.5).floor().to(torch.uint8)
    soft = images.clone()
    soft[:, :, 1:-1, 1:-1] = smooth
    return _blend(soft, images, strength)


def autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Stretch each channel to 0..255."""
    low = images.amin((2, 3), keepdim=True).double()
    high = images.amax((2, 3), keepdim=True).double()
    scale = 255.0 / (high - low).clamp(min=1)
    stretched = (images * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Spread each channel's values evenly over 0..255."""
    flat = images.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    before = counts.cumsum(2) - counts
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    spread = table.gather(2, flat)
    return torch.where(step > 0, spread, flat).to(torch.uint8).view_as(images)


def shear_y(images: Tensor, strength: Tensor) -> Tensor:
    """Row y of column x from row y + strength * x; bicubic."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    y = torch.arange(height, device=images.device, dtype=torch.float64) + 0.5
    rows = y[None, :, None] + strength.double()[:, None, None] * x
    above = (rows - 0.5).floor().long()
    share = (rows - 0.5 - above)[:, None]
    flat, column = images.flatten(2).double(), torch.arange(width, device=images.device)

    def value(offset: int) -> Tensor:
        where = (above + offset).clamp(0, height - 1) * width + column
        return flat.gather(2, where.flatten(1)[:, None].expand(-1, 3, -1)).view(images.shape)

    mixed = cubic_between([value(offset) for offset in (-1, 0, 1, 2)], share)
    there = (rows >= 0) & (rows < height)
    return torch.where(there[:, None], mixed.clamp(0, 255).to(torch.uint8), GREY)


def translate_x(images: Tensor, strength: Tensor) -> Tensor:
    """Take each pixel from so many widths further right."""
    height, width = images.shape[2:]
    columns = _shifted(width, strength)[:, None, :].expand(-1, height, -1)
    rows = torch.arange(height, device=images.device)[None, :, None].expand_as(columns)
    return _gathered(images, rows, columns)


def translate_y(images: Tensor, strength: Tensor) -> Tensor:
    """Take each pixel from so many heights further down."""
    return translate_x(images.mT, strength).mT


def rotate(images: Tensor, strength: Tensor) -> Tensor:
    """Turn counter-clockwise by so many degrees about the centre."""
    angle = -torch.deg2rad(strength.double())
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    height, width = images.shape[2:]
    x, y = width / 2, height / 2
    columns = _fixed(cos, sin, x - cos * x - sin * y, height, width)
    rows = _fixed(-sin, cos, y + sin * x - cos * y, height, width)
    return _gathered(images, rows, columns)


def cutout(images: Tensor, row: Tensor, column: Tensor, side: int) -> Tensor:
    """A black square of ``side`` pixels about (row, column) `[B]`, clipped at the border."""
    position = torch.arange(max(images.shape[2:]), device=images.device)

    def inside(centre: Tensor, length: int) -> Tensor:
        start = centre[:, None] - side // 2
        return (position[:length] >= start) & (position[:length] < start + side)

    hole = inside(row, images.shape[2])[:, None, :, None] & inside(column, images.shape[3])[:, None, None, :]
    return images.masked_fill(hole, 0)


OPERATIONS = {
    function.__name__: function
    for function in (
        invert,
        solarize,
        solarize_add,
        posterize,
        brightness,
        color,
        contrast,
        sharpness,
        autocontrast,
        equalize,
        shear_y,
        translate_x,
        translate_y,
        rotate,
    )
}


def _each(strength: Tensor) -> Tensor:
    return strength[:, None, None, None]


def _luminance(images: Tensor) -> Tensor:
    """`[B, 1, H, W]` uint8: Pillow's integer weights of ITU-R 601."""
    red, green, blue = images.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8)[:, None]


def _blend(base: Tensor, images: Tensor, strength: Tensor) -> Tensor:
    """base + (1 + strength) (images - base), cut to 0..255 and towards zero."""
    factor = (1 + _each(strength)).float()
    return (base.float() + factor * (images.float() - base.float())).clamp(0, 255).to(torch.uint8)


def _shifted(length: int, share: Tensor) -> Tensor:
    """Where each of ``length`` pixels comes from: [B, length]; -1 from before the first."""
    centres = torch.arange(length, device=share.device, dtype=torch.float64) + 0.5
    return (centres + (share * length).double()[:, None]).floor().long()


def _fixed(x: Tensor, y: Tensor, start: Tensor, height: int, width: int) -> Tensor:
    """floor(x column + y row + start) at pixel centres, in Pillow's fixed point of 16 bits: [B, H, W]."""
    columns = torch.arange(width, device=x.device)
    rows = torch.arange(height, device=x.device)[:, None]
    x_step, y_step, first = (
        (value * 65536 + 0.5).floor().long() for value in (x, y, start + x * 0.5 + y * 0.5)
    )
    return (first + x_step * columns + y_step * rows) >> 16


def _gathered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at (rows, columns) `[B, H, W]`; grey where these lie outside."""
    height, width = images.shape[2:]
    there = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    where = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    moved = images.flatten(2).gather(2, where.flatten(1)[:, None].expand(-1, 3, -1)).view(images.shape)
    return torch.where(there[:, None], moved, GREY)
