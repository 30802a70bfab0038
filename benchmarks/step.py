"""Images per second of a KD training step, against a plain PyTorch loop, side by side in one process.

    python benchmarks/step.py                      # ResNet-56 -> ResNet-20 and WRN-40-2 -> WRN-16-2
    python benchmarks/step.py --rounds 5 --json results/benchmarks/step.json

The plain loop is written the way the CIFAR research code is: a DataLoader with PIL transforms, contiguous
float32 tensors, eager execution, `.item()` on loss and accuracy in every step. Both loops train the same
networks with the same loss, batch size and optimiser on the same images. They alternate, so that whatever
else the machine does hits both; the ratio is the median over the rounds.

Weights and images are random: neither changes the time of a step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import tutelage.models  # noqa: F401  (registers the CIFAR networks with timm)
from tutelage.data import Dataset as ResidentDataset
from tutelage.data import ResidentData, dataset_info
from tutelage.methods import Clock, DataSpec, Networks, create_method
from tutelage.models.network import Network
from tutelage.recipes.schema import OptimiserRecipe
from tutelage.training.build import place
from tutelage.training.loop import Meter
from tutelage.training.optimisers import create_optimiser
from tutelage.training.step import Step, compiled_or_eager

PAIRS = (("resnet56_cifar", "resnet20_cifar"), ("wrn_40_2_cifar", "wrn_16_2_cifar"))
MEAN, STD = dataset_info("cifar100").mean, dataset_info("cifar100").std
TEMPERATURE, ALPHA = 4.0, 0.9


class PillowImages(Dataset[tuple[Tensor, int]]):
    """CIFAR as torchvision serves it: one PIL image at a time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from PIL import Image

        self.make = Image.fromarray
        self.images = images.permute(0, 2, 3, 1).numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(self.make(self.images[row])), self.labels[row]


def forever(make: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Repeat an epoch's iterator without end."""
    while True:
        yield from make()


def plain_loop(
    teacher_name: str,
    student_name: str,
    data: ResidentDataset,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Callable[[int], float]:
    """The research code's loop; returns a function: steps -> seconds."""
    teacher = timm.create_model(teacher_name, num_classes=100).to(device).eval()
    student = timm.create_model(student_name, num_classes=100).to(device).train()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        PillowImages(data.train_images, data.train_labels),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    batches = forever(lambda: iter(loader))
    losses: list[float] = []

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            images, targets = next(batches)
            images, targets = images.float().to(device), targets.to(device)
            logits = student(images)
            with torch.no_grad():
                teacher_logits = teacher(images)
            kd = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, dim=1),
                F.softmax(teacher_logits / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            loss = (1 - ALPHA) * F.cross_entropy(logits, targets) + ALPHA * TEMPERATURE**2 * kd
            top1 = (logits.argmax(1) == targets).float().sum()
            losses.extend([loss.item(), top1.item()])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return run


def tutelage_loop(
    teacher_name: str,
    student_name: str,
    data: ResidentDataset,
    batch_size: int,
    amp: torch.dtype | None,
    compile_step: bool,
    device: torch.device,
) -> Callable[[int], float]:
    """This project's step on resident images; returns a function: steps -> seconds."""
    resident = ResidentData(data, device, mean=MEAN, std=STD)
    nets = Networks(
        (Network(timm.create_model(student_name, num_classes=100)),),
        Network(timm.create_model(teacher_name, num_classes=100), role="frozen"),
    )
    for net in (nets.student, nets.teacher):
        assert net is not None
        place(net, device, channels_last=True)
    method = create_method("kd", temperature=TEMPERATURE, ce_weight=1 - ALPHA, kd_weight=ALPHA)
    method.setup(
        nets, DataSpec(100, (3, 32, 32), resident.train_labels, resident.take, resident.augment.count)
    )
    step = Step(nets.folded(data.info.image_size), method, amp=amp).train()
    optimiser = create_optimiser(step, OptimiserRecipe(name="momentum"))
    epochs = iter(range(10**9))
    batches = forever(lambda: resident.train_batches(next(epochs), 0, batch_size, drop_last=True))
    clock = Clock(torch.zeros((), device=device), torch.zeros((), device=device))
    call: Callable[..., Any] = step
    if compile_step:
        call, why_not = compiled_or_eager(step, next(batches), clock)
        assert why_not is None, why_not
    meter = Meter(device)

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            batch = next(batches)
            result = call(batch, clock)
            result.loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            meter.add(result, batch_size)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return run


def compare(teacher: str, student: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time both loops in alternation on one pair."""
    generator = torch.Generator().manual_seed(0)
    info = dataset_info("cifar100")
    count = options.batch_size * (options.steps + 2)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 100, (count,), generator=generator)
    data = ResidentDataset(info, images, labels, images[:1], labels[:1])
    amp = torch.bfloat16 if options.amp == "bf16" else None
    loops = {
        "plain": plain_loop(teacher, student, data, options.batch_size, options.workers, device),
        "tutelage": tutelage_loop(teacher, student, data, options.batch_size, amp, not options.eager, device),
    }
    for run in loops.values():
        run(2)
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(options.rounds):
        for name, run in loops.items():
            speeds[name].append(options.steps * options.batch_size / run(options.steps))
    ratios = [ours / plain for ours, plain in zip(speeds["tutelage"], speeds["plain"], strict=True)]
    return {
        "teacher": teacher,
        "student": student,
        "images_per_second": {name: round(statistics.median(values), 1) for name, values in speeds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10, help="steps a round (default 10)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each loop (default 5)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--workers", type=int, default=0, help="DataLoader workers of the plain loop (default 0)"
    )
    parser.add_argument(
        "--amp", choices=["bf16", "off"], default="bf16", help="autocast of this project's step"
    )
    parser.add_argument("--eager", action="store_true", help="do not compile this project's step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    device = torch.device(options.device)
    result: dict[str, Any] = {
        "command": "python benchmarks/step.py",
        "options": {k: v for k, v in vars(options).items() if k != "json"},
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pairs": [],
    }
    for teacher, student in PAIRS:
        row = compare(teacher, student, options, device)
        result["pairs"].append(row)
        speeds = row["images_per_second"]
        low, high = row["ratio_range"]
        print(
            f"{teacher} -> {student}: plain {speeds['plain']:.0f} images/s, "
            f"tutelage {speeds['tutelage']:.0f} images/s, ratio {row['ratio']} ({low} to {high})",
            flush=True,
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
