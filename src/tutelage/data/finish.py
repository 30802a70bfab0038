"""The way from cut 8-bit images to what networks see, the same wherever the images come from."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tutelage.data.augment import normalise
from tutelage.data.mixing import Mix

SEEDS = 2**31
"""How many different draws there are for an image that is cut; 0 stands for none."""


class Policy(Protocol):
    """What changes the colours or shapes of cut images."""

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Change 8-bit images.

        Args:
            images: `[B, 3, H, W]` uint8.
            seeds: `[B]` int64, the draw of each image; what happens to it follows from the number alone, and
                with 0 nothing does. On the images' device, or on the CPU, which is cheaper, see `chosen`.

        Returns:
            `[B, 3, H, W]` uint8.
        """
        ...


class Erasing(Protocol):
    """What replaces a part of normalised images."""

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """As for a `Policy`, on floating-point images."""
        ...


class Finish:
    """Policy, normalisation, mixing, erasing: in this order, as timm's loader has them.

    Attributes:
        mean: `[3]` float32 on the device, on the 0..1 scale.
        std: `[3]`, likewise.
        varies: Whether an image that is cut one way may come out in several.
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        channels_last: bool = True,
        dtype: torch.dtype = torch.float32,
        policy: Policy | None = None,
        erasing: Erasing | None = None,
    ) -> None:
        """Args:
        mean: Of the normalisation.
        std: Likewise.
        channels_last: Memory format of the result.
        dtype: Its floating-point type.
        policy: None for none.
        erasing: None for none.
        """
        self.mean, self.std = mean, std
        self.varies = policy is not None or erasing is not None
        self._policy, self._erasing, self._dtype = policy, erasing, dtype
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor, seeds: Tensor | None = None, mix: Mix | None = None) -> Tensor:
        """Finish a batch.

        Args:
            images: `[B, 3, H, W]` uint8.
            seeds: `[B]` int64 in 0..SEEDS - 1, a draw for each image, on the CPU or the images' device; None,
                like 0, shows them as they are.
            mix: What to do with the batch as a whole.

        Returns:
            `[B, 3, H, W]`.
        """
        if seeds is not None and self._policy is not None:
            images = self._policy(images, seeds)
        finished = normalise(images, self.mean, self.std, self._dtype)
        if mix is not None:
            finished = mix.images(finished)
        if seeds is not None and self._erasing is not None:
            finished = self._erasing(finished, seeds)
        return finished.contiguous(memory_format=self._memory_format)
