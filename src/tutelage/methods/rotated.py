"""What the methods share that show every image in four rotations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.views import ROTATIONS, joint_labels, rotate_batch
from tutelage.losses import cross_entropy, kd_loss
from tutelage.methods.base import Method
from tutelage.models.network import Outputs


class RotatedMethod(Method):
    """Four rows a sample, the first of them upright; branches tell class and rotation at once."""

    def views(self, batch: Batch, generator: torch.Generator) -> Batch:
        """All four rotations of every image, drawn by no chance."""
        return rotate_batch(batch)

    def upright_loss(self, batch: Batch, output: Outputs) -> Tensor:
        """Cross entropy of the backbone's scores for the upright rows: a scalar."""
        smoothing = self.config.label_smoothing
        return cross_entropy(output.logits[::ROTATIONS], batch.targets[::ROTATIONS], smoothing)

    def joint_loss(self, batch: Batch, branches: Sequence[Tensor]) -> Tensor:
        """Cross entropy with the joint labels over all rows, summed over ``branches``: a scalar."""
        labels = joint_labels(batch.targets[::ROTATIONS])
        losses = [cross_entropy(branch, labels, self.config.label_smoothing) for branch in branches]
        return torch.stack(losses).sum()


def branch_kd(student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
    """KL of each branch to its partner, summed over the branches: a scalar."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([kd_loss(own, other, temperature) for own, other in pairs]).sum()
