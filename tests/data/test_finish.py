"""What follows the cut, from files and from memory: the same, by the view alone, in training only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from toys import draw_folders
from tutelage.data import (
    ColorJitter,
    ImageData,
    RandAugment,
    RandomErasing,
    ResidentData,
    ResizedViews,
    StreamData,
    load_dataset,
    make_shapes,
)

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
POLICIES = {
    "rand": RandAugment.parse("rand-m9-mstd0.5-inc1", (0.5, 0.4, 0.3)),
    "jitter": ColorJitter(0.4),
    "nothing": None,
}


def data_of(kind: str, folder: Path, **what: object) -> ImageData:
    if kind == "files":
        stored = load_dataset("folder", draw_folders(folder, train=4))
        return StreamData(stored, "cpu", image_size=32, **PLAIN, **what)
    views = ResizedViews(32, 40) if kind == "resized" else None
    return ResidentData(make_shapes(2, 1), "cpu", augment=views, **PLAIN, **what)


def as_bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


@pytest.mark.parametrize("kind", ["files", "memory", "resized"])
@pytest.mark.parametrize("policy", POLICIES)
def test_policy_then_erasing(kind: str, policy: str, tmp_path: Path) -> None:
    erasing = RandomErasing(0.7)
    data = data_of(kind, tmp_path, policy=POLICIES[policy], erasing=erasing)
    plain = data_of(kind, tmp_path)
    assert data.view_count == 2**31 * plain.view_count
    batch = next(data.train_batches(0, 0, 12))
    cut = as_bytes(plain.take(batch.index, batch.view % plain.view_count).images)
    seeds = batch.view // plain.view_count
    assert seeds.min() > 0
    changed = cut if POLICIES[policy] is None else POLICIES[policy](cut, seeds)
    expected = erasing(changed.float() / 255, seeds)
    assert torch.equal(batch.images, expected) and not torch.equal(as_bytes(expected), cut)
    assert torch.equal(data.take(batch.index.flip(0), batch.view.flip(0)).images.flip(0), batch.images)
    rest = list(data.train_batches(0, 0, 5))
    assert torch.equal(next(data.train_batches(0, 0, 5, start_step=1)).images, rest[1].images)
    for split in ("train", "test"):
        shown, wanted = (next(one.eval_batches(split, 8)).images for one in (data, plain))
        assert torch.equal(shown, wanted)
