"""Small resident images, cut and enlarged on the device: CIFAR at the sizes that ImageNet networks take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.data.hashing import uniforms
from tutelage.data.windows import TRIES, Window, first_window

SEEDS = 2**31
"""Number of views; 0 is the plain one."""


@dataclass(frozen=True)
class ResizedViews:
    """torchvision's ``RandomResizedCrop`` with flip on images that lie on the device, as views by number.

    Pixels are those of Pillow's filters, rounded to 8 bits after each direction as Pillow does; where the
    rounding is a tie they may differ by 1. A view's window, filter and flip follow from a hash of its number.
    View 0 is what is evaluated: the whole image enlarged to size / crop_share, its centre cut out.

    Attributes:
        size: Side of the (square) images, in pixels.
        out_size: Side of the result.
        crop_share: Share of the enlarged side that evaluation shows (timm's ``crop_pct``).
        interpolation: "bilinear", "bicubic", or "random" for either while training and bicubic in evaluation.
        scale: Smallest and largest share of the image's area in a window.
        ratio: Smallest and largest width over height.
        flip: Whether half of the views are mirrored.
        vary: False shows the plain view alone.
    """

    size: int
    out_size: int
    crop_share: float = 0.875
    interpolation: str = "random"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    vary: bool = True

    @property
    def count(self) -> int:
        """Number of distinct views."""
        return SEEDS if self.vary else 1

    @property
    def identity(self) -> int:
        """Id of the view that is evaluated."""
        return 0

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` view ids, `[n]` int64 on the generator's device."""
        lowest = 1 if self.vary else 0
        return torch.randint(lowest, self.count, (n,), generator=generator, device=generator.device)

    def apply(self, images: Tensor, index: Tensor, view: Tensor) -> Tensor:
        """See `CropFlip.apply`; uint8 in, `[B, 3, out_size, out_size]` uint8 out."""
        chosen = images.index_select(0, index)
        draws = uniforms(view, 4 * TRIES + 2)
        shown = view > 0
        window = self._window(draws[:, : 4 * TRIES].view(len(view), TRIES, 4))
        window = window.where(shown, self._plain_window(len(view), view.device))
        mirrored = shown & (draws[:, -1] < 0.5) if self.flip else torch.zeros_like(shown)
        cubic = torch.full_like(shown, self.interpolation != "bilinear")
        if self.interpolation == "random":
            cubic = ~shown | (draws[:, -2] < 0.5)
        return resize(chosen, window, self.out_size, cubic, mirrored, cut=shown)

    def plain(self, images: Tensor) -> Tensor:
        """Images as they are evaluated: `[B, 3, size, size]` to `[B, 3, out, out]`, uint8."""
        rows = torch.arange(len(images), device=images.device)
        return self.apply(images, rows, torch.zeros_like(rows))

    def _plain_window(self, count: int, device: torch.device) -> Window:
        """The part of the image that the centre of the enlarged one shows."""
        enlarged = math.floor(self.out_size / self.crop_share)
        first = round((enlarged - self.out_size) / 2) * self.size / enlarged
        side = self.out_size * self.size / enlarged
        start, length = (torch.full((count,), value, device=device) for value in (first, side))
        return Window(start, start, length, length)

    def _window(self, draws: Tensor) -> Window:
        """The first of ten random windows that fits, else the whole image; ``draws`` are `[B, 10, 4]`."""
        window, found = first_window(draws, self.size, self.scale, self.ratio, self.size)
        start, whole = (torch.full_like(window.top, value) for value in (0.0, float(self.size)))
        return window.where(found, Window(start, start, whole, whole))


def resize(
    images: Tensor,
    window: Window,
    size: int,
    cubic: Tensor,
    mirrored: Tensor,
    cut: Tensor | None = None,
) -> Tensor:
    """Fill `size` x `size` pixels with a window of each image, as Pillow's ``resize(box=...)`` does.

    Where the window is cut out first, as torchvision's ``resized_crop`` does, filters don't reach beyond it.

    Args:
        images: `[B, 3, H, W]` uint8.
        window: In pixels of the images.
        size: Side of the result.
        cubic: `[B]` bool, bicubic (a = -0.5) or bilinear.
        mirrored: `[B]` bool, left and right exchanged.
        cut: `[B]` bool, whether the window, of whole pixels, is cut out first; None for nowhere.

    Returns:
        `[B, 3, size, size]` uint8.
    """
    height, width = images.shape[2:]
    columns = filter_weights(window.left, window.width, width, size, cubic, cut)
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    rows = filter_weights(window.top, window.height, height, size, cubic, cut)
    wide = _to_bytes(torch.einsum("bsw,bchw->bchs", columns, images.float()))
    return _to_bytes(torch.einsum("bsh,bchw->bcsw", rows, wide)).to(torch.uint8)


def filter_weights(
    start: Tensor, length: Tensor, pixels: int, size: int, cubic: Tensor, cut: Tensor | None = None
) -> Tensor:
    """How much each pixel of a line counts in each of the result's: `[B, size, pixels]`, rows sum to 1.

    Args:
        start: `[B]`, first position of the window.
        length: `[B]`, its extent.
        pixels: Length of the line.
        size: Number of pixels wanted.
        cubic: `[B]` bool.
        cut: See `resize`.
    """
    scale = (length / size)[:, None, None]
    stretch = scale.clamp(min=1.0)
    centre = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    position = torch.arange(pixels, device=start.device) + 0.5
    reach = torch.where(cubic, 2.0, 1.0)[:, None, None] * stretch
    first, last = (
        (centre - reach + 0.5).floor().clamp(min=0),
        (centre + reach + 0.5).floor().clamp(max=pixels),
    )
    x = ((position - centre) / stretch).abs()
    linear = (1 - x).clamp(min=0)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    cube = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    weight = torch.where(cubic[:, None, None], cube, linear)
    if cut is not None:
        first = torch.where(cut[:, None, None], first.maximum(start[:, None, None]), first)
        last = torch.where(cut[:, None, None], last.minimum((start + length)[:, None, None]), last)
    inside = (position - 0.5 >= first) & (position - 0.5 < last)
    weight = weight * inside
    return weight / weight.sum(2, keepdim=True)


def _to_bytes(values: Tensor) -> Tensor:
    """Rounded and cut to 0..255, still floating point."""
    return (values + 0.5).floor().clamp(0, 255)
