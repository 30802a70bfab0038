"""Parts of PAT: attention over the regions of all stages of a student, and where its code goes astray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.methods.projectors import Patches

Position = Literal["batch", "token", "none"]
"""What the positional table is indexed with, see `RegionAttention`."""

TABLE_ROWS = 5000
"""Rows of the published positional table."""


class RegionAttention(nn.Module):
    """Self-attention among regions of all stages of one network.

    Each stage gives N regions as tokens; these go through one layer norm and one set of linear maps to
    queries, keys and values. All S N tokens, stage by stage, attend to each other. Nothing follows the
    attention: no residual, no output map.

    Args:
        shapes: `[C, H, W]` of each of the S stages.
        regions: N, a square number.
        width: D, a multiple of ``heads``.
        heads: Attention heads.
        position: Row of the sinusoidal table that is added to queries and keys: "token" takes the token's
            number among S N, "batch" the sample's number in the batch (so that a sample's tokens all get the
            same row), "none" adds nothing.

    Source:
        Lin et al. 2025, arXiv 2501.08885, section on region-aware attention; PAT ``distillers/pat.py``, which
        indexes by the batch.
    """

    positional_encodings: Tensor

    def __init__(
        self, shapes: Sequence[Sequence[int]], regions: int, width: int, heads: int, position: Position
    ) -> None:
        super().__init__()
        self.regions, self.heads, self.position = regions, heads, position
        self.projector_s = nn.ModuleList(Patches(shape, math.isqrt(regions), width) for shape in shapes)
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        rows = max(TABLE_ROWS, regions * len(shapes))
        self.register_buffer("positional_encodings", sinusoids(rows, width))

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """S maps `[B, C_l, H_l, W_l]` to S blended sets of regions `[B, N, D]`.

        Raises:
            UserError: The table has fewer rows than the batch, where it is indexed with the batch.
        """
        tokens = torch.cat(
            [patches(stage) for patches, stage in zip(self.projector_s, stages, strict=True)], dim=1
        )
        tokens = self.norm(tokens)
        keys, values = self.to_kv(tokens).chunk(2, dim=2)
        places = self._places(*tokens.shape[:2])
        blended = F.scaled_dot_product_attention(
            self._split(self.to_q(tokens) + places), self._split(keys + places), self._split(values)
        )
        return list(blended.transpose(1, 2).flatten(2).split(self.regions, dim=1))

    def _places(self, batch: int, tokens: int) -> Tensor | float:
        table = self.positional_encodings
        if self.position == "token":
            return table[:tokens].transpose(0, 1)
        if self.position == "none":
            return 0.0
        if batch > len(table):
            raise UserError(
                f"the published positions know {len(table)} samples, the batch has {batch}; make it smaller "
                "or set method.position=token"
            )
        return table[:batch]

    def _split(self, tokens: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, heads, L, D / heads]`."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


def class_token_last(patches: Tensor, prefix: Tensor) -> Tensor:
    """The map that comes of dropping the last P tokens instead of the first.

    The tokens in front take the first places, the patches move on by P, and the last P of them are lost.

    Args:
        patches: `[B, C, H, W]`.
        prefix: `[B, C, P, 1]`.

    Returns:
        `[B, C, H, W]`.
    """
    height, across = patches.shape[2:]
    everything = torch.cat([prefix.flatten(2), patches.flatten(2)], dim=2)
    return everything[:, :, : height * across].unflatten(2, (height, across))


def sinusoids(rows: int, width: int) -> Tensor:
    """The positional table `[rows, 1, width]`, float32.

    Column 2i holds sin(row w_i), column 2i + 1 cos(row w_i), w_i = 10000^(-2i / width).
    """
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(rows).unsqueeze(1) * frequencies
    table = torch.zeros(rows, 1, width)
    table[:, 0, 0::2] = angles.sin()
    table[:, 0, 1::2] = angles.cos()[:, : width // 2]
    return table
