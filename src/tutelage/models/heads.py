"""The end of a network: its classifiers, and the pooled vector that they receive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def classifiers(model: Any) -> list[nn.Module]:
    """The modules that ``get_classifier`` of ``model`` names; distilled networks have several."""
    return list(_flat(model.get_classifier()))


def pooled_from(received: Sequence[Tensor]) -> Tensor:
    """One vector [B, D] of what each classifier received, [B, D_i] or [B, D_i, 1, 1].

    DeiT's two receive a token each, of which its own ``forward_head`` gives the mean as pooled vector; those
    of CrossViT and EfficientViM receive vectors of several widths, which theirs puts side by side; those of
    EfficientFormer and LeViT receive the same vector.
    """
    vectors: list[Tensor] = []
    for vector in received:
        if not any(vector is other for other in vectors):
            vectors.append(vector)
    vectors = [vector.flatten(1) for vector in vectors]
    if len(vectors) == 1:
        return vectors[0]
    if len({vector.shape[1] for vector in vectors}) > 1:
        return torch.cat(vectors, dim=1)
    return torch.stack(vectors).sum(0) / len(vectors)


def _flat(named: Any) -> Iterator[nn.Module]:
    """The modules in one, in a tuple or list of them, or in a tuple of lists."""
    if isinstance(named, Sequence | nn.ModuleList):
        for part in named:
            yield from _flat(part)
    elif isinstance(named, nn.Module):
        yield named
