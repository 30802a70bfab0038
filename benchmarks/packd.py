"""Images per second and peak memory of PACKD's training step for two numbers of negatives.

    python benchmarks/packd.py
    python benchmarks/packd.py --negatives 4096 --negatives 16384 --json results/benchmarks/packd.json

The plain loop is written the way the research code is: mixes and negatives are made one image at a time by
the data loader, the negatives' rows of the memory are gathered for every view (2.15 GB at 16384 negatives),
and the Sinkhorn rounds ask the host whether to go on. Each measurement runs in a process of its own, so that
its peak memory is its own. Images per second counts anchors; each is shown in four views.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import harness
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.data import Dataset as ResidentDataset
from tutelage.methods import create_method

TEACHER, STUDENT = "resnet56_cifar", "resnet20_cifar"
IMAGES, VIEWS, WIDTH, TAU, TEMPERATURE = 50000, 4, 128, 0.07, 4.0


class MixedImages(harness.PillowImages):
    """An image, three mixes with turned images of its class, and the rows of its negatives."""

    def __init__(self, images: Tensor, labels: Tensor, negatives: int) -> None:
        super().__init__(images, labels)
        numbers = labels.numpy()
        self.same = [np.flatnonzero(numbers == label) for label in range(harness.CLASSES)]
        self.other = [np.flatnonzero(numbers != label) for label in range(harness.CLASSES)]
        self.negatives = negatives

    def __getitem__(self, row: int) -> tuple[Any, ...]:  # type: ignore[override]
        label = self.labels[row]
        image = self.make(self.images[row])
        views = [self.transform(image)]
        for partner in np.random.choice(self.same[label], VIEWS - 1):
            turned = self.make(self.images[partner]).rotate(90 * np.random.randint(4))
            share = np.random.rand()
            views.append(share * self.transform(image) + (1 - share) * self.transform(turned))
        drawn = np.random.choice(self.other[label], self.negatives, replace=False)
        chosen = np.concatenate([[row], drawn])
        return torch.stack(views).float(), label, row, torch.from_numpy(chosen)


def sinkhorn(cost: Tensor) -> Tensor:
    """The transport plan, with a look at the host after every round."""
    epsilon, count = 0.1, cost.shape[-1]
    u, v = torch.zeros_like(cost[:, :, 0]), torch.zeros_like(cost[:, 0])
    share = torch.log(torch.full_like(u, 1 / count) + 1e-8)

    def scaled() -> Tensor:
        return (-cost + u.unsqueeze(2) + v.unsqueeze(1)) / epsilon

    for _ in range(100):
        before = u
        u = epsilon * (share - torch.logsumexp(scaled(), 2)) + u
        v = epsilon * (share - torch.logsumexp(scaled(), 1)) + v
        if (u - before).abs().sum(1).mean().item() < 0.1:
            break
    return torch.exp(scaled())


def plain_loop(options: argparse.Namespace, data: ResidentDataset, negatives: int) -> harness.Loop:
    """PACKD's student stage as its code runs it."""
    device = torch.device(options.device)
    teacher = harness.network(TEACHER).to(device).eval()
    student = harness.network(STUDENT).to(device).train()
    head = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).to(device)
    embed = nn.Linear(64, WIDTH).to(device)
    bank = F.normalize(torch.randn(IMAGES, WIDTH, device=device), dim=1)
    loader = torch.utils.data.DataLoader(
        MixedImages(data.train_images, data.train_labels, negatives),
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        drop_last=True,
        persistent_workers=options.workers > 0,
    )

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for views, labels, index, chosen in loader:
            yield views, labels, torch.cat([index[:, None], chosen], dim=1)

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            return batches()

    def kd(own: Tensor, other: Tensor) -> Tensor:
        return TEMPERATURE**2 * F.kl_div(
            F.log_softmax(own / TEMPERATURE, 1), F.softmax(other / TEMPERATURE, 1), reduction="batchmean"
        )

    def terms(views: Tensor, labels: Tensor, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        index, chosen = rows[:, 0], rows[:, 1:]
        images = views.flatten(0, 1)
        features = student.forward_head(student.forward_features(images), pre_logits=True)
        logits = student.get_classifier()(features)
        with torch.no_grad():
            taught = teacher.forward_head(teacher.forward_features(images), pre_logits=True)
            teacher_logits = teacher.get_classifier()(taught)
            guides = F.normalize(head(taught), dim=1)
        anchors = F.normalize(embed(features), dim=1)
        s, t = anchors.view(-1, VIEWS, WIDTH), guides.view(-1, VIEWS, WIDTH)
        bank[index] = F.normalize(0.5 * bank[index] + 0.5 * t[:, 0], dim=1)
        every = chosen.repeat_interleave(VIEWS, 0)
        scores = torch.bmm(bank[every.flatten()].view(len(every), -1, WIDTH), anchors.unsqueeze(2))
        plan = sinkhorn((s.unsqueeze(2) - t.unsqueeze(1)).pow(2).sum(-1)).detach()
        positive = torch.exp((plan * torch.bmm(s, t.mT)).sum((1, 2)) / TAU)
        negative = torch.exp(scores.view(len(s), -1) / TAU).sum(1)
        contrast = -torch.log(positive / (positive + negative)).mean()
        plain = torch.arange(0, len(logits), VIEWS, device=logits.device)
        mixed = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        mixed[plain] = False
        losses = [
            F.cross_entropy(logits, labels.repeat_interleave(VIEWS)),
            kd(logits[plain], teacher_logits[plain]),
            kd(logits[mixed], teacher_logits[mixed]),
            0.8 * contrast,
        ]
        return losses, logits[plain]

    return harness.plain_loop(terms, [student, embed], Loader(), device)


def tutelage_loop(options: argparse.Namespace, data: ResidentDataset, negatives: int) -> harness.Loop:
    """This project's student stage."""
    method = create_method("packd", negatives=negatives)
    return harness.tutelage_loop(method, [STUDENT], TEACHER, data, options)


LOOPS = {"plain": plain_loop, "tutelage": tutelage_loop}


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Speed and peak memory of one loop, in this process."""
    run = LOOPS[options.one](options, harness.random_data(options, IMAGES), options.negatives[0])
    run(1)
    speeds = [options.steps * options.batch_size / run(options.steps) for _ in range(options.rounds)]
    if options.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_second": round(sorted(speeds)[len(speeds) // 2], 1), "peak_mib": round(peak)}


def main() -> None:
    """Measure each loop and number in a process of its own, and print a table."""
    parser = harness.parser(__doc__, rounds=3)
    parser.set_defaults(steps=4)
    parser.add_argument("--negatives", type=int, action="append", help="repeatable (default 4096 and 16384)")
    parser.add_argument("--one", choices=list(LOOPS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    rows = []
    for negatives in options.negatives or [4096, 16384]:
        row: dict[str, Any] = {"negatives": negatives}
        for name in LOOPS:
            command = [sys.executable, __file__, "--one", name, "--negatives", str(negatives)]
            for key in ("steps", "rounds", "batch_size", "workers", "amp", "device"):
                command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
            command += ["--eager"] if options.eager else []
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row[name] = json.loads(output.splitlines()[-1])
        ratio = row["tutelage"]["images_per_second"] / row["plain"]["images_per_second"]
        row["ratio"] = round(ratio, 2)
        rows.append(row)
        spoken = ", ".join(
            f"{name} {row[name]['images_per_second']} images/s and {row[name]['peak_mib']} MiB"
            for name in LOOPS
        )
        print(f"packd, {negatives} negatives: {spoken}, ratio {row['ratio']}", flush=True)
    if options.json:
        harness.write("packd.py", options, rows)


if __name__ == "__main__":
    main()
