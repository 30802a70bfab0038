"""Images per second of HSAKD's, HSSAKD's and DPCD's training steps, against plain PyTorch loops.

    python benchmarks/branches.py
    python benchmarks/branches.py --only dpcd --rounds 5 --json results/benchmarks/branches.json

Both loops run side by side in one process. The plain ones are written the way the research code is: see
`step.py`; in addition every head's loss is fetched in each step, DPCD keeps its confidences in a list on the
host and lets the teacher compute branches it does not use. HSAKD and HSSAKD see each image in four
rotations, so that a step of 64 images is one of 256.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator
from typing import Any

import harness
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.methods import create_method
from tutelage.models.network import Ask, Network

TEACHER, STUDENT, PEER = "resnet56_cifar", "resnet20_cifar", "resnet20_cifar"
CLASSES, TEMPERATURE = harness.CLASSES, 3.0


def kl(logits: Tensor, target: Tensor) -> Tensor:
    """KL at T = 3, times its square."""
    student = F.log_softmax(logits / TEMPERATURE, dim=1)
    return F.kl_div(student, F.softmax(target / TEMPERATURE, dim=1), reduction="batchmean") * TEMPERATURE**2


def rotated(images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [4B, 3, H, W], sample-major."""
    turned = torch.stack([torch.rot90(images, turns, (2, 3)) for turns in range(4)], dim=1)
    return turned.view(-1, *images.shape[1:])


def joint(targets: Tensor) -> Tensor:
    """Labels of class and rotation, [4B]."""
    return torch.stack([targets * 4 + turns for turns in range(4)], dim=1).view(-1)


def with_branches(name: str, width: int, device: torch.device) -> Network:
    """A network of the zoo with branch heads ``width`` times as wide as the classes."""
    return Network(harness.network(name), Ask(branches=width * CLASSES)).to(device)


def hsakd(loader: Any, device: torch.device) -> harness.Loop:
    """HSAKD's student."""
    teacher, student = with_branches(TEACHER, 4, device).eval(), with_branches(STUDENT, 4, device).train()

    def terms(images: Tensor, targets: Tensor, index: Tensor) -> tuple[list[Tensor], Tensor]:
        images = rotated(images)
        own = student(images)
        with torch.no_grad():
            taught = teacher(images)
        losses = [F.cross_entropy(own.logits[0::4], targets), kl(own.logits, taught.logits.detach())]
        losses += [kl(a, b.detach()) for a, b in zip(own.branches, taught.branches, strict=True)]
        return losses, own.logits[0::4]

    return harness.plain_loop(terms, [student], loader, device)


def hssakd(loader: Any, device: torch.device) -> harness.Loop:
    """HSSAKD's pair of networks."""
    nets = [with_branches(name, 4, device).train() for name in (STUDENT, PEER)]

    def terms(images: Tensor, targets: Tensor, index: Tensor) -> tuple[list[Tensor], Tensor]:
        images, labels = rotated(images), joint(targets)
        outs = [net(images) for net in nets]
        losses = []
        for own, peer in (outs, outs[::-1]):
            losses.append(F.cross_entropy(own.logits[0::4], targets))
            losses += [F.cross_entropy(branch, labels) for branch in own.branches]
            losses.append(kl(own.logits, peer.logits.detach()))
            losses += [kl(a, b.detach()) for a, b in zip(own.branches, peer.branches, strict=True)]
        return losses, outs[0].logits[0::4]

    return harness.plain_loop(terms, nets, loader, device)


def decoupled(logits: Tensor, target: Tensor, labels: Tensor, alpha: float, beta: float) -> Tensor:
    """DKD as its code writes it, with masks over the classes; per sample."""
    own = torch.zeros_like(logits).scatter_(1, labels.unsqueeze(1), 1).bool()
    p, q = F.softmax(logits / TEMPERATURE, dim=1), F.softmax(target / TEMPERATURE, dim=1)
    two = [torch.cat([(x * own).sum(1, keepdim=True), (x * ~own).sum(1, keepdim=True)], 1) for x in (p, q)]
    tckd = F.kl_div(two[0].log(), two[1], reduction="none").sum(1)
    log_p = F.log_softmax(logits / TEMPERATURE - 1000.0 * own, dim=1)
    rest = F.softmax(target / TEMPERATURE - 1000.0 * own, dim=1)
    nckd = F.kl_div(log_p, rest, reduction="none").sum(1)
    return (alpha * tckd + beta * nckd) * TEMPERATURE**2


def dpcd(loader: Any, device: torch.device) -> harness.Loop:
    """DPCD's student."""
    teacher, student = with_branches(TEACHER, 1, device).eval(), with_branches(STUDENT, 1, device).train()
    history: deque[float] = deque(maxlen=2000)

    def terms(images: Tensor, targets: Tensor, index: Tensor) -> tuple[list[Tensor], Tensor]:
        own = student(images)
        with torch.no_grad():
            taught = teacher(images)
            sure = F.softmax(taught.logits, dim=1).gather(1, targets.unsqueeze(1))
        history.extend(sure.flatten().tolist())
        threshold = float(torch.tensor(list(history)).quantile(0.65)) if len(history) == 2000 else 0.6
        share = float(torch.sigmoid(18 * (sure.mean() - threshold)))
        losses = [F.cross_entropy(head, targets) for head in (own.logits, *own.branches)]
        losses.append(decoupled(own.logits, taught.logits.detach(), targets, 2 - share, 1 + 3 * share).mean())
        heads = [*own.branches, own.logits]
        for i, guide in enumerate(heads):
            for learner in heads[i + 1 :]:
                agreement = F.cosine_similarity(F.softmax(learner, 1), F.softmax(guide, 1)) ** 2
                losses.append((agreement * decoupled(learner, guide.detach(), targets, 1, 8)).mean())
        return losses, own.logits

    return harness.plain_loop(terms, [student], loader, device)


LOOPS = {"hsakd": hsakd, "hssakd": hssakd, "dpcd": dpcd}


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare the loops of each method."""
    for name in options.only or LOOPS:
        data = harness.random_data(options)
        students = [STUDENT, PEER] if name == "hssakd" else [STUDENT]
        found = harness.compare(
            LOOPS[name](harness.pillow_loader(data, options), torch.device(options.device)),
            {"ours": harness.tutelage_loop(create_method(name), students, TEACHER, data, options)},
            options,
        )["ours"]
        networks = f"{STUDENT} and {PEER}" if name == "hssakd" else f"{TEACHER} -> {STUDENT}"
        yield {"name": f"{name}, {networks}", **found}


if __name__ == "__main__":
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("--only", action="append", choices=list(LOOPS), help="only this method; repeatable")
    chosen = parser.parse_args()
    harness.report("branches.py", chosen, rows(chosen))
