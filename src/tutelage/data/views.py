"""Several views of each sample in one batch: four rotations, their labels, and back to classes."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import Batch

ROTATIONS = 4


def rotate_batch(batch: Batch) -> Batch:
    """Put the four rotations of each image beneath each other.

    Row ``4 i + k`` is image i turned counter-clockwise by 90 k degrees, so the upright images are the rows
    ``::4``. The rotations of an image share its crop and flip.

    Args:
        batch: B samples with square images `[B, 3, S, S]`.

    Returns:
        `4 B` samples; targets, index and view are repeated, images are stored channels_last.

    Raises:
        ValueError: The images are not square.

    Source:
        HSAKD ``train_student_cifar.py``.
    """
    height, width = batch.images.shape[-2:]
    if height != width:
        raise ValueError(f"images of {height} x {width} pixels change shape when turned; give square ones")
    pixels = batch.images.permute(0, 2, 3, 1)
    turned = torch.stack([pixels.rot90(k, (1, 2)) for k in range(ROTATIONS)], dim=1)
    return Batch(
        turned.flatten(0, 1).permute(0, 3, 1, 2),
        batch.targets.repeat_interleave(ROTATIONS, dim=0),
        batch.index.repeat_interleave(ROTATIONS),
        batch.view.repeat_interleave(ROTATIONS),
    )


def joint_labels(targets: Tensor, rotations: int = ROTATIONS) -> Tensor:
    """Labels that name class and rotation at once, for the rows of `rotate_batch`.

    Args:
        targets: Labels of the B samples, one each: class numbers `[B]` int64, or probabilities `[B, C]`.
        rotations: M, how many views each sample has.

    Returns:
        `[M B]` int64, ``M y_i + k`` in row ``M i + k``; for probabilities `[M B, M C]`, where row
        ``M i + k`` has the probability of class c in column ``M c + k``.
    """
    turn = torch.arange(rotations, device=targets.device)
    if not targets.is_floating_point():
        return (targets.unsqueeze(1) * rotations + turn).flatten()
    own = (turn.unsqueeze(1) == turn).to(targets.dtype)
    return (targets[:, None, :, None] * own[None, :, None, :]).flatten(2).flatten(0, 1)


def collapse_joint(logits: Tensor, classes: int) -> Tensor:
    """Class scores from joint ones: the sum of the logits of each class over its rotations.

    Args:
        logits: `[B, M C]` in the order of `joint_labels`.
        classes: C.

    Returns:
        `[B, C]`.
    """
    return logits.unflatten(1, (classes, -1)).sum(dim=2)
