"""Small drawn images for tests: quick to make, quick to learn, the same everywhere for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tutelage.data.catalog import Dataset, DatasetInfo, Normalisation, dataset_info, register_dataset

# Each outline takes offsets from the centre in units of the radius (x to the right, y downwards) and tells
# which points lie inside. All are mirror images of themselves, as are the fillings, so flips keep the class.
OUTLINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: (x.abs() <= 0.85) & (y.abs() <= 0.85),
    "triangle": lambda x, y: (y <= 0.8) & (2 * x.abs() <= y + 1),
    "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.36),
    "cross": lambda x, y: ((x.abs() <= 0.3) & (y.abs() <= 1)) | ((y.abs() <= 0.3) & (x.abs() <= 1)),
}
FILLINGS = ("plain", "striped")
TRAIN_PER_CLASS = 100
TEST_PER_CLASS = 20


@register_dataset(
    DatasetInfo(
        name="shapes",
        class_names=tuple(f"{filling} {outline}" for outline in OUTLINES for filling in FILLINGS),
        image_size=32,
        normalisation=Normalisation((0.339,) * 3, (0.237,) * 3),
        train_count=TRAIN_PER_CLASS * len(OUTLINES) * len(FILLINGS),
        test_count=TEST_PER_CLASS * len(OUTLINES) * len(FILLINGS),
        padding=2,
        flip=True,
        source="drawn by tutelage.data.shapes",
        licence="Apache-2.0, as the project",
    )
)
def _load_shapes(info: DatasetInfo, folder: Path | None, download: bool) -> Dataset:
    return make_shapes()


def make_shapes(
    train_per_class: int = TRAIN_PER_CLASS, test_per_class: int = TEST_PER_CLASS, seed: int = 0
) -> Dataset:
    """Draw the dataset `shapes`: five outlines, each plain or striped, at random places, sizes and colours.

    Args:
        train_per_class: Training images of each of the ten classes.
        test_per_class: Test images of each class.
        seed: Of everything random.

    Returns:
        A dataset whose images are shuffled and whose classes are equally frequent.
    """
    info = dataset_info("shapes")
    generator = torch.Generator().manual_seed(seed)
    train = _draw(info, train_per_class, generator)
    test = _draw(info, test_per_class, generator)
    info = replace(info, train_count=len(train[1]), test_count=len(test[1]))
    return Dataset(info, *train, *test)


def _draw(info: DatasetInfo, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images `[n, 3, H, W]` uint8 and labels `[n]`, shuffled."""
    labels = torch.arange(info.num_classes).repeat(per_class)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    n, side = len(labels), info.image_size

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    radius = between(0.22, 0.38, 1, 1) * side
    centre_x, centre_y = between(0.4, 0.6, 1, 1) * side, between(0.4, 0.6, 1, 1) * side
    grid = torch.arange(side) + 0.5
    x = ((grid.view(1, 1, side) - centre_x) / radius).expand(n, side, side)
    y = ((grid.view(1, side, 1) - centre_y) / radius).expand(n, side, side)
    outlines = torch.stack([inside(x, y) for inside in OUTLINES.values()])
    outline = outlines[labels // len(FILLINGS), torch.arange(n)]
    # Stripes are two rows on, two rows off.
    plain = (labels % len(FILLINGS) == 0).view(n, 1, 1)
    ink = (outline & (plain | (torch.arange(side).view(1, side, 1) // 2 % 2 == 0))).unsqueeze(1)
    background, foreground = between(0.05, 0.45, 3, 1, 1), between(0.6, 1.0, 3, 1, 1)
    noise = 0.05 * torch.randn(n, 3, side, side, generator=generator)
    images = torch.where(ink, foreground, background) + noise
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), labels
