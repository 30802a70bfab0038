"""Images per second of a KD training step, against a plain PyTorch loop, side by side in one process.

The teacher's answers can be looked up where they were asked for before (`tutelage.training.answers`), so a
step has three speeds: with the teacher asked in every step; on average over a first run of 240 epochs, in
which 48 % of the answers are found again; and in later runs that find all of them. Each is measured; a table
with a share of the answers stands for the average.

    python benchmarks/step.py                      # ResNet-56 -> ResNet-20 and WRN-40-2 -> WRN-16-2
    python benchmarks/step.py --rounds 9 --steps 20 --json results/benchmarks/step.json

The plain loop is written the way the CIFAR research code is: a DataLoader with PIL transforms, contiguous
float32 tensors, eager execution, `.item()` on losses and accuracy in every step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import harness
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.methods import create_method
from tutelage.training.answers import known_share

EPOCHS = 240
"""Of the published recipes of both pairs."""
PAIRS = (("resnet56_cifar", "resnet20_cifar"), ("wrn_40_2_cifar", "wrn_16_2_cifar"))
TEMPERATURE, ALPHA = 4.0, 0.9


def plain_loop(teacher_name: str, student_name: str, loader: Any, device: torch.device) -> harness.Loop:
    """Hinton's KD as the CRD code runs it."""
    teacher = harness.network(teacher_name).to(device).eval()
    student = harness.network(student_name).to(device).train()

    def terms(images: Tensor, targets: Tensor, index: Tensor) -> tuple[list[Tensor], Tensor]:
        logits = student(images)
        with torch.no_grad():
            teacher_logits = teacher(images)
        kd = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, dim=1),
            F.softmax(teacher_logits / TEMPERATURE, dim=1),
            reduction="batchmean",
        )
        return [(1 - ALPHA) * F.cross_entropy(logits, targets), ALPHA * TEMPERATURE**2 * kd], logits

    return harness.plain_loop(terms, [student], loader, device)


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare the loops on each pair."""
    data = harness.random_data(options)
    loader = harness.pillow_loader(data, options)
    first_run = known_share(data.info.augment.count, EPOCHS)
    for teacher, student in PAIRS:
        plain = plain_loop(teacher, student, loader, torch.device(options.device))

        def ours(known: float | None) -> harness.Loop:
            method = create_method("kd", temperature=TEMPERATURE, ce_weight=1 - ALPHA, kd_weight=ALPHA)
            return harness.tutelage_loop(method, [student], teacher, data, options, known=known)  # noqa: B023

        loops = {
            "teacher asked in every step": ours(None),
            f"a first run of {EPOCHS} epochs": ours(first_run),
            "answers known from earlier runs": ours(1.0),
        }
        for state, found in harness.compare(plain, loops, options).items():
            yield {"name": f"kd, {teacher} -> {student}, {state}", **found}


if __name__ == "__main__":
    chosen = harness.parser(__doc__).parse_args()
    harness.report("step.py", chosen, rows(chosen))
