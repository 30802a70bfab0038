"""What the methods share that show every image in four rotations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.views import ROTATIONS, joint_labels, rotate_batch
from tutelage.losses import kd_loss
from tutelage.methods.base import Method
from tutelage.models.network import Outputs


class RotatedMethod(Method):
    """Four rows a sample, the first of them upright; branches tell class and rotation at once."""

    def views(self, batch: Batch, generator: torch.Generator) -> Batch:
        """All four rotations of every image, drawn by no chance."""
        return rotate_batch(batch)

    def upright_loss(self, batch: Batch, output: Outputs) -> Tensor:
        """`label_loss` of the backbone's scores for the upright rows: a scalar."""
        return self.label_loss(output.logits[::ROTATIONS], batch.targets[::ROTATIONS])

    def joint_loss(self, batch: Batch, branches: Sequence[Tensor]) -> Tensor:
        """`label_loss` with the joint labels over all rows, summed over ``branches``: a scalar."""
        labels = joint_labels(batch.targets[::ROTATIONS])
        return torch.stack([self.label_loss(branch, labels) for branch in branches]).sum()


def branch_kd(student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
    """KL of each branch to its partner, summed over the branches: a scalar."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([kd_loss(own, other, temperature) for own, other in pairs]).sum()
