"""What the step benchmarks share: the research code's loop, this project's loop, and their comparison.

Both loops train the same kinds of networks with the same loss, batch size and optimiser on the same images.
They alternate, so that whatever else the machine does hits both; the ratio is the median over the rounds.
Weights and images are random: neither changes the time of a step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import tutelage.models  # noqa: F401  (registers the CIFAR networks with timm)
from tutelage.data import Dataset as ResidentDataset
from tutelage.data import ResidentData, dataset_info
from tutelage.methods import Clock, DataSpec, Method, Networks
from tutelage.models.network import Network
from tutelage.recipes.schema import OptimiserRecipe
from tutelage.training.answer_files import AnswerFiles
from tutelage.training.answers import Answers, Pass, taught_batches
from tutelage.training.hardware import place
from tutelage.training.meter import Meter
from tutelage.training.optimisers import create_optimiser
from tutelage.training.progress import Reporter
from tutelage.training.step import Step, compiled_or_eager

CLASSES = 100
MEAN, STD = dataset_info("cifar100").mean, dataset_info("cifar100").std

Loop = Callable[[int], float]
"""Steps -> seconds."""
PlainTerms = Callable[[Tensor, Tensor, Tensor], tuple[list[Tensor], Tensor]]
"""Images, targets, dataset index -> the loss terms and the logits that accuracy is taken from."""


class PillowImages(Dataset[tuple[Tensor, int, int]]):
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

    def __getitem__(self, row: int) -> tuple[Tensor, int, int]:
        return self.transform(self.make(self.images[row])), self.labels[row], row


def forever(make: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Repeat an epoch's batches without end."""
    while True:
        yield from make()


def network(name: str) -> nn.Module:
    """A network of the zoo for CIFAR-100 with random weights."""
    return timm.create_model(name, num_classes=CLASSES)


def plain_loop(
    terms_of: PlainTerms, trained: Iterable[nn.Module], loader: Iterable[Any], device: torch.device
) -> Loop:
    """The research code's loop: eager, float32, losses and accuracy fetched in every step.

    Args:
        terms_of: Runs the networks and gives the terms.
        trained: Modules that learn.
        loader: Gives (images, targets, index) on the host.
        device: Where to compute.
    """
    parameters = [p for module in trained for p in module.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    batches = forever(lambda: loader)
    seen: list[float] = []

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            images, targets, index = (part.to(device) for part in next(batches))
            terms, logits = terms_of(images.float(), targets, index)
            loss = torch.stack(terms).sum()
            hits = (logits.argmax(1) == targets).float().sum()
            seen.extend(value.item() for value in (loss, *terms, hits))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return run


def tutelage_loop(
    method: Method,
    students: Sequence[str],
    teacher: str | None,
    data: ResidentDataset,
    options: argparse.Namespace,
    objective: str = "forward",
    known: float | None = None,
) -> Loop:
    """This project's step on resident images.

    Args:
        method: Not yet set up.
        students: Names of the networks that learn.
        teacher: Name of the frozen one, or None.
        data: Images and labels.
        options: Of the command line.
        objective: Of the method.
        known: Share of the teacher's answers that lie in a table already; None asks it in every step.
    """
    device = torch.device(options.device)
    resident = ResidentData(data, device, mean=MEAN, std=STD)
    needs = method.needs.for_classes(CLASSES)
    nets = Networks(
        tuple(Network(network(name), needs.student) for name in students),
        None
        if teacher is None or needs.teacher is None
        else Network(network(teacher), needs.teacher, "frozen"),
    )
    for net in (*nets.students, *([nets.teacher] if nets.teacher else [])):
        place(net, device, channels_last=True)
    spec = DataSpec(CLASSES, (3, 32, 32), resident.train_labels, resident.take, resident.view_count)
    method.setup(nets, spec)
    method.to(device)
    amp = torch.bfloat16 if options.amp == "bf16" else None
    nets = nets.folded(data.info.image_size)
    step = Step(nets, method, objective, amp).train()
    answers = None
    if known is not None and nets.teacher is not None:
        asked = Pass(nets.teacher, amp)
        earlier = Answered(known, amp)
        answers = Answers(asked, resident, options.batch_size, not options.eager, earlier, Strict(quiet=True))
    optimiser = create_optimiser(step, OptimiserRecipe(name="momentum"))
    epochs = iter(range(10**9))
    resident.drop_last = True
    batches = forever(
        lambda: taught_batches(resident, answers, next(epochs), 0, options.batch_size, start_step=0)
    )
    clock = Clock(torch.zeros((), device=device), torch.zeros((), device=device))
    generator = torch.Generator(device=device).manual_seed(0)
    call: Callable[..., Any] = step
    if not options.eager:
        batch, taught = next(batches)
        call, why_not = compiled_or_eager(step, method.views(batch, generator), clock, taught)
        assert why_not is None, why_not
    meter = Meter(device)

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            batch, taught = next(batches)
            rows = method.views(batch, generator)
            result = call(rows, clock, taught)
            result.loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            method.commit(rows)
            meter.add(result, len(batch.targets))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return run


class Strict(Reporter):
    """Lets no warning pass."""

    def warn(self, text: str) -> None:
        """Stop."""
        raise AssertionError(text)


class Answered(AnswerFiles):
    """Stands for the files of earlier runs, in which a random share of all answers lies."""

    def __init__(self, share: float, amp: torch.dtype | None) -> None:
        super().__init__({})
        self.share, self.dtype = share, amp or torch.float32

    def read(self, rows: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """See `AnswerFiles.read`."""
        chosen = torch.rand(rows, generator=torch.Generator().manual_seed(0)) < self.share
        numbers = chosen.nonzero().flatten()
        if len(numbers):
            yield numbers, {"logits": torch.randn(len(numbers), CLASSES).to(self.dtype)}


def random_data(options: argparse.Namespace, images: int | None = None) -> ResidentDataset:
    """Random images and labels in CIFAR-100's shape, by default enough for a round of steps."""
    generator = torch.Generator().manual_seed(0)
    count = images or options.batch_size * (options.steps + 2)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % CLASSES
    return ResidentDataset(dataset_info("cifar100"), pixels, labels, pixels[:1], labels[:1])


def pillow_loader(data: ResidentDataset, options: argparse.Namespace) -> DataLoader[Any]:
    """The research code's data loader over the same images."""
    return DataLoader(
        PillowImages(data.train_images, data.train_labels),
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        drop_last=True,
        persistent_workers=options.workers > 0,
    )


def alternate(loops: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each loop gives in so many rounds, the loops taking turns."""
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, run in loops.items():
            speeds[name].append(run())
    return speeds


def ratio(ours: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Median and range of the ratios of the rounds."""
    ratios = [own / reference for own, reference in zip(ours, other, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def compare(plain: Loop, ours: Mapping[str, Loop], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Time the plain loop and each of ours, all in turn; the ratios are those to the plain loop."""
    images = options.steps * options.batch_size
    loops = {"plain": plain, **ours}
    for run in loops.values():
        run(2)
    speeds = alternate(
        {name: partial(_speed, run, images, options.steps) for name, run in loops.items()}, options.rounds
    )
    middle = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    return {
        name: {
            "images_per_second": {"plain": middle["plain"], "tutelage": middle[name]},
            **ratio(speeds[name], speeds["plain"]),
        }
        for name in ours
    }


def _speed(run: Loop, images: int, steps: int) -> float:
    return images / run(steps)


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of a convolution that suits the processor: 64 to 64 channels, 3 x 3, on 64 maps of 32 x 32.

    What it gives in float32 and in bfloat16 bounds how much faster the same arithmetic can become.
    """
    maps = torch.randn(64, 64, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False, device=device, dtype=dtype)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def seconds(calls: int) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.no_grad():
            for _ in range(calls):
                layer(maps)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / calls

    seconds(3)
    operations = 2 * 64 * 32 * 32 * 64 * 64 * 9
    return operations / min(seconds(5) for _ in range(5)) / 1e9


def processor() -> str:
    """Name of the processor, where the system tells it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def parser(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """Options that all step benchmarks have."""
    parsed = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parsed.add_argument("--steps", type=int, default=10, help="steps a round (default 10)")
    parsed.add_argument("--rounds", type=int, default=rounds, help=f"rounds of each loop (default {rounds})")
    parsed.add_argument("--batch-size", type=int, default=64)
    parsed.add_argument(
        "--workers", type=int, default=0, help="DataLoader workers of the plain loop (default 0)"
    )
    parsed.add_argument(
        "--amp", choices=["bf16", "off"], default="bf16", help="autocast of this project's step"
    )
    parsed.add_argument("--eager", action="store_true", help="do not compile this project's step")
    parsed.add_argument("--device", default="cpu")
    parsed.add_argument("--json", type=Path, help="also write the result to this file")
    return parsed


def report(script: str, options: argparse.Namespace, rows: Iterable[dict[str, Any]]) -> None:
    """Print each row as it comes, and write them all where the options say so.

    Args:
        script: File name of the benchmark.
        options: What it ran with.
        rows: What `compare` gave, each with ``name``.
    """
    device = torch.device(options.device)
    peaks = {name: round(peak(device, getattr(torch, name))) for name in ("float32", "bfloat16")}
    print(
        f"convolutions here: {peaks['float32']} GFLOP/s in float32, {peaks['bfloat16']} in bfloat16",
        flush=True,
    )
    seen = []
    for row in rows:
        seen.append(row)
        speeds = row["images_per_second"]
        low, high = row["ratio_range"]
        print(
            f"{row['name']}: plain {speeds['plain']:.0f} images/s, "
            f"tutelage {speeds['tutelage']:.0f} images/s, ratio {row['ratio']} ({low} to {high})",
            flush=True,
        )
    if options.json:
        write(script, options, seen, {"convolution_gflops": peaks})


def write(
    script: str,
    options: argparse.Namespace,
    rows: list[dict[str, Any]],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the rows and what they were measured with, ``more`` included, to ``options.json``."""
    cuda = options.device.startswith("cuda")
    result = {
        "command": f"python benchmarks/{script}",
        "options": {key: value for key, value in vars(options).items() if key != "json"},
        "hardware": torch.cuda.get_device_name() if cuda else f"cpu {platform.machine()}, {processor()}",
        **(more or {}),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
