"""Images per second of the stream pipeline, against timm's loader and torchvision's plain one, on one folder.

    python benchmarks/stream.py                     # a generated folder of JPEG files
    python benchmarks/stream.py imagenette --image-size 128 --json results/benchmarks/stream.json

All three decode the same files, cut RandomResizedCrop's windows with bilinear interpolation, mirror half of
them and hand out batches that are normalised and on the device; nothing is trained. A round is a whole epoch,
from the first request to the last batch. The workers of all three stay from one epoch to the next and prepare
two batches each. The loaders take turns; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import harness
import timm.data
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from tutelage.data import IMAGENET_NORMALISATION, StreamData, load_dataset

MEAN, STD = IMAGENET_NORMALISATION
GENERATED_SIZE = (500, 375)
"""Width and height of generated images, ImageNet's usual ones."""


def draw_folder(folder: Path, images: int, classes: int = 4) -> None:
    """Smooth random pictures with some noise, which make JPEG files of about the size of photographs."""
    generator = torch.Generator().manual_seed(0)
    for number in range(images + classes):
        part = "train" if number < images else "val"
        coarse = torch.rand(1, 3, 9, 12, generator=generator)
        width, height = GENERATED_SIZE
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
        noisy = smooth * 220 + 18 + 10 * torch.randn(3, height, width, generator=generator)
        path = folder / part / f"class{number % classes}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = noisy.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
        Image.fromarray(pixels.numpy()).save(path, quality=90)


@contextmanager
def images_in(options: argparse.Namespace) -> Iterator[Path]:
    """The folder to read; with fewer images than it has, a folder of links to some of each class."""
    if options.folder and not options.images:
        yield Path(options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.folder:
            draw_folder(folder, options.images or 1024)
        else:
            for part, most in (("train", options.images), ("val", 0)):
                classes = sorted(path for path in (Path(options.folder) / part).iterdir() if path.is_dir())
                for source in classes:
                    (folder / part / source.name).mkdir(parents=True)
                    for file in sorted(source.iterdir())[: max(most // len(classes), 1)]:
                        (folder / part / source.name / file.name).symlink_to(file.resolve())
        yield folder


def tutelage_epochs(folder: Path, options: argparse.Namespace) -> Callable[[], Iterable[Any]]:
    """This project's pipeline."""
    stored = load_dataset("folder", folder)
    data = StreamData(
        stored,
        options.device,
        options.image_size,
        MEAN,
        STD,
        interpolation="bilinear",
        workers=options.workers,
    )
    epochs = count()
    return lambda: (
        (batch.images, batch.targets) for batch in data.train_batches(next(epochs), 0, options.batch_size)
    )


def timm_epochs(folder: Path, options: argparse.Namespace) -> Callable[[], Iterable[Any]]:
    """timm's loader, which normalises on the device too."""
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=str(folder / "train")),
        input_size=(3, options.image_size, options.image_size),
        batch_size=options.batch_size,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=options.workers,
        pin_memory=options.device.startswith("cuda"),
        device=torch.device(options.device),
    )
    return lambda: loader


def torchvision_epochs(folder: Path, options: argparse.Namespace) -> Callable[[], Iterable[Any]]:
    """The loop of PyTorch's ImageNet example."""
    steps = [
        transforms.RandomResizedCrop(options.image_size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    loader: DataLoader[Any] = DataLoader(
        datasets.ImageFolder(str(folder / "train"), transforms.Compose(steps)),
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        pin_memory=options.device.startswith("cuda"),
        persistent_workers=options.workers > 0,
    )
    return lambda: ([part.to(options.device, non_blocking=True) for part in batch] for batch in loader)


def speed(epoch: Callable[[], Iterable[Any]], options: argparse.Namespace) -> float:
    """Images per second of a whole epoch."""
    began, images = time.perf_counter(), 0
    for batch, _ in epoch():
        images += len(batch)
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    return images / (time.perf_counter() - began)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """One row: the three loaders on the same files."""
    with images_in(options) as folder:
        epochs = {
            "tutelage": tutelage_epochs(folder, options),
            "timm": timm_epochs(folder, options),
            "torchvision": torchvision_epochs(folder, options),
        }
        loops = {name: lambda epoch=epoch: speed(epoch, options) for name, epoch in epochs.items()}
        for run in loops.values():
            run()  # workers start, files come into the cache
        speeds = harness.alternate(loops, options.rounds)
        files = sum(1 for path in (folder / "train").rglob("*") if path.is_file())
    return {
        "name": f"{files} images of {Path(options.folder).name if options.folder else 'noise and gradients'}",
        "images_per_second": {name: round(statistics.median(values), 1) for name, values in speeds.items()},
        "against": {
            name: harness.ratio(speeds["tutelage"], values)
            for name, values in speeds.items()
            if name != "tutelage"
        },
    }


def main() -> None:
    """Measure, print and write."""
    parsed = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parsed.add_argument("folder", nargs="?", help="with train/CLASS/* and val/CLASS/* (default: generated)")
    parsed.add_argument("--images", type=int, help="only so many training images (generated: 1024)")
    parsed.add_argument("--image-size", type=int, default=224, help="side of the crops (default 224)")
    parsed.add_argument("--batch-size", type=int, default=128)
    parsed.add_argument(
        "--workers", type=int, default=2, help="decoding processes of each loader (default 2)"
    )
    parsed.add_argument("--rounds", type=int, default=5, help="epochs of each loader (default 5)")
    parsed.add_argument("--device", default="cpu")
    parsed.add_argument("--json", type=Path, help="also write the result to this file")
    options = parsed.parse_args()
    row = compare(options)
    speeds = ", ".join(f"{name} {value:.0f} images/s" for name, value in row["images_per_second"].items())
    print(f"{row['name']}: {speeds}")
    for name, found in row["against"].items():
        low, high = found["ratio_range"]
        print(f"  tutelage / {name}: {found['ratio']} ({low} to {high})")
    if options.json:
        options.folder = options.folder and Path(options.folder).name
        harness.write("stream.py", options, [row])


if __name__ == "__main__":
    main()
