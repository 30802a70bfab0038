"""What contrastive methods share: heads on the unit sphere and a memory of one embedding a training image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = TypeVar("Parts", bound=NamedTuple)


class Held(nn.Module, Generic[Parts]):
    """A named tuple of tensors that goes where its module goes; checkpoints leave it out.

    Args:
        parts: The tuple.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self._make: Callable[..., Parts] = type(parts)
        for name, part in parts._asdict().items():
            self.register_buffer(name, part, persistent=False)

    @property
    def parts(self) -> Parts:
        """The tuple, on the device of the module."""
        return self._make(**dict(self.named_buffers()))


class EmbeddingHead(nn.Module):
    """One linear layer and a projection onto the unit sphere.

    RepDistiller ``crd/criterion.py`` (``Embed``) and PACKD ``packd/packd.py`` divide by the norm without a
    guard; here a vector of zeros stays one.

    Args:
        features: Width of what comes in.
        width: D, width of the embedding.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, width)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, features]` to embeddings `[B, D]` of length 1."""
        return F.normalize(self.linear(features), dim=1)


class MemoryBank(nn.Module):
    """One embedding for each row of the training subset, as a buffer.

    Entries are uniform in ``[-b, b]`` at first, ``b = sqrt(3 / D)``, so that a row has length 1 on average.

    Several processes: each holds all rows. A method writes everybody's, see `Method.everyones`, so that the
    banks stay equal.

    Args:
        size: N, rows of the training subset.
        width: D, width of an embedding.
        normalised: Scale the first rows to length 1 (PACKD); CRD leaves them.
    """

    rows: Tensor

    def __init__(self, size: int, width: int, normalised: bool = False) -> None:
        super().__init__()
        bound = math.sqrt(3 / width)
        rows = torch.empty(size, width).uniform_(-bound, bound)
        self.register_buffer("rows", F.normalize(rows, dim=1) if normalised else rows)

    def moved(self, index: Tensor, embeddings: Tensor, momentum: float | Tensor) -> Tensor:
        """What rows become: normalise(m old + (1 - m) new), without writing it.

        Args:
            index: `[B]` int64 rows.
            embeddings: `[B, D]`; their graph is dropped.
            momentum: m in [0, 1], a number, or `[B, 1]` on the device.

        Returns:
            `[B, D]`, of length 1. A method that has scored against the bank in the same step hands it to
            `Method.keep` and writes it in `commit`.
        """
        new = embeddings.detach().to(self.rows.dtype)
        return F.normalize(momentum * self.rows[index] + (1 - momentum) * new, dim=1)

    @torch.no_grad()
    def write(self, index: Tensor, rows: Tensor) -> None:
        """Put ``rows`` `[B, D]` in place ``index`` `[B]`, each of which occurs once."""
        self.rows.index_copy_(0, index, rows.to(self.rows.dtype))

    def scores(self, anchors: Tensor, chosen: Tensor) -> Tensor:
        """Dot products of anchors with chosen rows; the gradient reaches the anchors alone.

        Either the products with all N rows are formed and the chosen ones picked, or the chosen rows are
        fetched first: whichever holds fewer numbers, B M N or B K D. With 16384 of 50000 rows of width 128
        the first holds a fortieth of the numbers.

        Args:
            anchors: `[B, M, D]`, M views of each sample.
            chosen: `[B, K]` int64 rows, shared by the views of a sample.

        Returns:
            `[B, M, K]`.
        """
        views, width = anchors.shape[1:]
        if views * len(self.rows) <= chosen.shape[1] * width:
            everything = anchors @ self.rows.t()
            return everything.gather(2, chosen.unsqueeze(1).expand(-1, views, -1))
        return anchors @ self.rows[chosen].transpose(1, 2)
