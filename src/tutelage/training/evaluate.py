"""Accuracy and loss of a network on a split, summed exactly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.data import ImageData
from tutelage.data.batch import Batch
from tutelage.data.views import rotate_batch
from tutelage.methods import Networks
from tutelage.models.network import Outputs
from tutelage.training.distributed import from_all
from tutelage.training.hardware import exact_float32
from tutelage.training.metrics import branch_correct, topk_correct
from tutelage.training.preprocessing import behind


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], rotations: int = 0) -> dict[str, Any]:
    """Evaluate ``model`` (images [B, 3, H, W] -> logits [B, C]) in eval mode and float32 (no TF32).

    Args:
        model: A network or a plain timm model; its training mode is put back afterwards.
        batches: Un-augmented batches; the last may be short, every image counts once. Several processes give
            batches of their own each, whose sums are added up; all get the same result.
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
    sums: Tensor | None = None
    for batch in batches:
        with exact_float32(batch.images.device):
            output = model((rotate_batch(batch) if rotations > 1 else batch).images)
        logits = output.logits[:: max(rotations, 1)] if isinstance(output, Outputs) else output
        loss = F.cross_entropy(logits.float(), batch.targets, reduction="sum").double()
        counts = [topk_correct(logits, batch.targets)]
        if rotations:
            hits = branch_correct(output.branches, batch.targets, rotations, ks=(1,))
            counts += [hits.joint[:, 0], hits.classes[:, 0]]
        row = torch.cat([loss.new_full((1,), len(batch.targets)), loss.view(1), *counts])
        sums = row if sums is None else sums + row
    model.train(was_training)
    own = [] if sums is None else sums.tolist()  # one of several processes may have had no batch
    images, loss_sum, *correct = (sum(part) for part in zip(*filter(None, from_all(own)), strict=True))
    top1, top5 = (100.0 * hits / images for hits in correct[:2])
    result: dict[str, Any] = {"loss": loss_sum / images, "top1": top1, "top5": top5, "images": int(images)}
    if rotations:
        shares = [100.0 * hits / (images * rotations) for hits in correct[2:]]
        half = len(shares) // 2
        result["branches"] = {"joint_top1": shares[:half], "class_top1": shares[half:]}
    return result


def evaluate_students(
    nets: Networks, data: ImageData, batch_size: int, rotations: int, average: nn.Module | None = None
) -> dict[str, Any]:
    """What an epoch's record says of the networks.

    Args:
        nets: With the students.
        data: Of the run.
        batch_size: Images at a time.
        rotations: See `evaluate`.
        average: The first student's moving average, where one is kept.

    Returns:
        Of the first student ``test`` and, where validation images are held out, ``val`` (else None); of the
        others ``peers``, and of the average ``ema_test`` and ``ema_val``, each where there is such.
    """
    record: dict[str, Any] = {"val": None}
    splits = ("val", "test") if data.size("val") else ("test",)
    for split in splits:
        record[split] = evaluate(nets.student, data.eval_batches(split, batch_size), rotations)
    if len(nets.students) > 1:
        record["peers"] = [
            evaluate(peer, data.eval_batches("test", batch_size), rotations) for peer in nets.students[1:]
        ]
    if average is not None:
        shown = behind(nets.student.preprocess, average)
        for split in splits:
            record[f"ema_{split}"] = evaluate(shown, data.eval_batches(split, batch_size))
    return record
