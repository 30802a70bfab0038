"""Random erasing against timm's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from timm.data import random_erasing as timm_erasing
from torch import Tensor

from tutelage.data import RandomErasing, ResidentData, make_shapes
from tutelage.data.erasing import FIRST
from tutelage.data.hashing import uniforms


class Scripted:
    """timm's source of random numbers, answering with one image's draws."""

    def __init__(self, draws: Tensor) -> None:
        self.first = float(draws[0])
        # An attempt of ours is area, width over height, row, column; timm's shape is height over width.
        attempts = (torch.tensor([0.0, 1, 0, 0]) - draws[1:].view(-1, 4)) * torch.tensor([-1.0, 1, -1, -1])
        self.attempts = attempts.double().tolist()
        self.numbers: Iterator[float] = iter(())

    def random(self) -> float:
        return self.first

    def uniform(self, low: float, high: float) -> float:
        if low > 0:  # the area begins an attempt
            attempt = self.attempts.pop(0)
            self.numbers = iter(attempt)
        return low + (high - low) * next(self.numbers)

    def randint(self, low: int, high: int) -> int:
        return low + int(next(self.numbers) * (high - low + 1))


@pytest.mark.parametrize(("side", "probability"), [(32, 0.25), (57, 1.0), (6, 1.0)])
def test_rectangles_are_timms(side: int, probability: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = torch.arange(1, 301)
    images = torch.full((300, 3, side, side), 99.0)
    erased = RandomErasing(probability)(images, seeds) != 99
    assert (images == 99).all()
    timms = timm_erasing.RandomErasing(probability, mode="pixel", device="cpu")
    draws = uniforms(seeds, 41, FIRST)
    expected = images.clone()
    for row, image in enumerate(expected):
        monkeypatch.setattr(timm_erasing, "random", Scripted(draws[row]))
        timms(image)
    wanted = expected != 99
    different = (erased != wanted).flatten(1).any(1)
    # Ours has float32 where timm has float64, so that a side may be rounded to the other integer.
    assert different.sum() <= 1, different.nonzero()
    share = float(wanted.flatten(1).any(1).double().mean())
    assert abs(share - probability) < 0.06
    assert (erased.all(1) == erased.any(1)).all()


def test_the_rectangle_is_noise_of_its_own() -> None:
    images = torch.zeros(200, 3, 32, 32, dtype=torch.float64)
    seeds = torch.arange(1, 201)
    made = RandomErasing(1.0)(images, seeds)
    noise = made[made != 0]
    assert made.dtype == torch.float64 and 0.02 * 200 * 3072 < len(noise) < 200 * 3072 / 3
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    assert len(noise.unique()) > 0.99 * len(noise)
    again = RandomErasing(1.0)(images[:7], seeds[:7].flip(0)).flip(0)
    assert torch.equal(again, made[:7])
    assert torch.equal(RandomErasing(1.0)(images, torch.zeros(200, dtype=torch.int64)), images)


def test_it_comes_after_the_normalisation_and_not_in_evaluation() -> None:
    dataset = make_shapes(8, 2)
    data = ResidentData(dataset, "cpu", erasing=RandomErasing(1.0))
    plain = ResidentData(dataset, "cpu")
    batch = next(data.train_batches(0, 0, 32))
    cut = plain.take(batch.index, batch.view % data.crop_count)
    kept = batch.images == cut.images
    assert 0.02 < 1 - float(kept.double().mean()) < 1 / 3
    assert abs(float(batch.images[~kept].std()) - 1) < 0.05
    assert torch.equal(data.take(batch.index, batch.view).images, batch.images)
    for split in ("test", "train"):
        pairs = zip(data.eval_batches(split, 16), plain.eval_batches(split, 16), strict=True)
        assert all(torch.equal(one.images, other.images) for one, other in pairs)
