"""Accuracy and loss of a network on a split, summed exactly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tutelage.data.batch import Batch
from tutelage.data.views import rotate_batch
from tutelage.models.network import Outputs
from tutelage.training.metrics import branch_correct, topk_correct


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], rotations: int = 0) -> dict[str, Any]:
    """Evaluate ``model`` (images [B, 3, H, W] -> logits [B, C]) in eval mode and float32.

    Args:
        model: A network or a plain timm model; its training mode is put back afterwards.
        batches: Un-augmented batches; the last may be short, every image counts once.
        rotations: How many rotations the branches' heads tell apart: 4 (HSAKD), 1 (DPCD); 0 leaves the
            branches out, which shows every image upright only. Loss and accuracy of the backbone are those
            of the upright images in any case.

    Returns:
        ``loss`` (mean cross entropy), ``top1`` and ``top5`` in percent, and ``images``. With ``rotations``
        also ``branches``: per branch in percent, over all rotations, ``joint_top1`` (class and rotation
        right) and ``class_top1`` (class right, after summing the logits of its rotations); HSAKD's
        ``ss_accuracy`` and ``class_accuracy``.
    """
    was_training = model.training
    model.eval()
    loss: torch.Tensor | float = 0.0
    correct: torch.Tensor | int = 0
    joint: torch.Tensor | int = 0
    classes: torch.Tensor | int = 0
    images = 0
    for batch in batches:
        output = model((rotate_batch(batch) if rotations > 1 else batch).images)
        logits = output.logits[:: max(rotations, 1)] if isinstance(output, Outputs) else output
        if rotations:
            hits = branch_correct(output.branches, batch.targets, rotations, ks=(1,))
            joint, classes = joint + hits.joint[:, 0], classes + hits.classes[:, 0]
        loss = loss + F.cross_entropy(logits.float(), batch.targets, reduction="sum").double()
        correct = correct + topk_correct(logits, batch.targets)
        images += len(batch.targets)
    model.train(was_training)
    top1, top5 = (100.0 * torch.as_tensor(correct, dtype=torch.float64) / images).tolist()
    result: dict[str, Any] = {"loss": float(loss) / images, "top1": top1, "top5": top5, "images": images}
    if rotations:
        result["branches"] = {
            name: (100.0 * torch.as_tensor(hit, dtype=torch.float64) / (images * rotations)).tolist()
            for name, hit in (("joint_top1", joint), ("class_top1", classes))
        }
    return result
