"""What travels from the data to the networks and the methods."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images of one step with everything that is needed to find or repeat them.

    Attributes:
        images: `[B, 3, H, W]`, floating point, normalised by mean and standard deviation.
        targets: `[B]` int64 class numbers, or `[B, C]` floating-point class probabilities.
        index: `[B]` int64, row of each sample in the split it was taken from. In training this is the row in
            the training *subset* (0..n-1), so memory banks have exactly n rows.
        view: `[B]` int64, how each sample was augmented; with `index` it gives the same image again,
            as it was before the batch was mixed.
        negatives: `[B, K]` int64, rows of the training subset to contrast each sample with. Only a method
            that contrasts draws them, in its `views`, where it has the generator; None otherwise.
    """

    images: Tensor
    targets: Tensor
    index: Tensor  # type: ignore[assignment]  # a field may hide tuple.index, which nobody calls on a batch
    view: Tensor
    negatives: Tensor | None = None
