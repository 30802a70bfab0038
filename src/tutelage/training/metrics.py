"""Counting hits on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.views import collapse_joint, joint_labels


class BranchHits(NamedTuple):
    """Hits of L branches for each of K k's, over all M B rows of B images in M rotations.

    Attributes:
        joint: `[L, K]` int64, hits among the M C joint labels (HSAKD's ``ss_accuracy``).
        classes: `[L, K]` int64, hits among the C classes, to which the joint scores were collapsed
            (``class_accuracy``).
    """

    joint: Tensor
    classes: Tensor


def topk_correct(logits: Tensor, targets: Tensor, ks: Sequence[int] = (1, 5)) -> Tensor:
    """How many samples have their label among the k highest logits, for each k.

    Equal logits rank by class index, lower first, so a network that answers the same for every class earns
    no more than its share. A NaN never counts as a hit; with fewer classes than k, all other samples do.

    Args:
        logits: Class scores `[B, C]`.
        targets: Class indices `[B]` int64, or soft labels `[B, C]`, of which the largest counts.
        ks: The k's.

    Returns:
        Counts `[len(ks)]` int64 in `[0, B]`, on the device of ``logits``, without a synchronisation.
    """
    labels = targets if targets.dim() == 1 else targets.argmax(dim=1)
    labels = labels.unsqueeze(1)
    own = logits.gather(1, labels)
    later = torch.arange(logits.shape[1], device=logits.device) >= labels
    behind = (logits < own) | ((logits == own) & later)
    rank = (~behind).sum(dim=1)
    return torch.stack([(rank < min(k, logits.shape[1])).sum() for k in ks])


def branch_correct(
    branches: Sequence[Tensor], targets: Tensor, rotations: int = 1, ks: Sequence[int] = (1, 5)
) -> BranchHits:
    """How many rows each branch gets right, as joint labels and as classes.

    Args:
        branches: L tensors `[M B, M C]`, rows and columns in the order of `rotate_batch` and `joint_labels`.
        targets: Labels of the B images: class indices `[B]` int64, or soft labels `[B, C]`.
        rotations: M; 1 for branches that tell the class alone, where both counts are the same.
        ks: The k's, see `topk_correct`.

    Returns:
        Counts in `[0, M B]` on the device, without a synchronisation.
    """
    labels, repeated = joint_labels(targets, rotations), targets.repeat_interleave(rotations, dim=0)
    joint = [topk_correct(branch, labels, ks) for branch in branches]
    collapsed = [collapse_joint(branch, branch.shape[1] // rotations) for branch in branches]
    classes = [topk_correct(branch, repeated, ks) for branch in collapsed]
    return BranchHits(torch.stack(joint), torch.stack(classes))
