"""Crop, flip and normalisation against torchvision's, view by view."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.functional as TF
from torch import Tensor

from tutelage.data import CropFlip, normalise

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def random_images(n: int, side: int) -> Tensor:
    return torch.randint(
        256, (n, 3, side, side), generator=torch.Generator().manual_seed(n), dtype=torch.uint8
    )


def torchvision_view(image: Tensor, augment: CropFlip, top: int, left: int, mirrored: bool) -> Tensor:
    """What torchvision's crop and flip make of a PIL image for the same draws."""
    picture = TF.pad(TF.to_pil_image(image), augment.padding, fill=0)
    picture = TF.crop(picture, top, left, augment.size, augment.size)
    return TF.pil_to_tensor(TF.hflip(picture) if mirrored else picture)


@pytest.mark.parametrize("channels_last", [True, False])
def test_all_cifar_views_equal_torchvision(channels_last: bool) -> None:
    augment = CropFlip(32, padding=4, flip=True)
    assert augment.count == 162
    images = random_images(5, 32)
    index = torch.arange(162) % 5
    stored = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    got = augment.apply(stored, index, torch.arange(162))
    assert got.dtype == torch.uint8 and got.is_contiguous(memory_format=torch.channels_last)
    draws = [(top, left, mirrored) for top in range(9) for left in range(9) for mirrored in (False, True)]
    for view, draw in enumerate(draws):
        assert torch.equal(got[view], torchvision_view(images[view % 5], augment, *draw)), (view, draw)


def test_views_without_flip_or_padding() -> None:
    images = random_images(1, 6)
    augment = CropFlip(6, padding=1, flip=False)
    got = augment.apply(images, torch.zeros(9, dtype=torch.int64), torch.arange(9))
    for view in range(augment.count):
        assert torch.equal(got[view], torchvision_view(images[0], augment, view // 3, view % 3, False))
    mirror = CropFlip(6, padding=0, flip=True)
    assert mirror.count == 2
    both = mirror.apply(images, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert torch.equal(both[0], images[0]) and torch.equal(both[1], images[0].flip(2))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_identity_leaves_images_as_they_are(padding: int, flip: bool) -> None:
    images, augment = random_images(4, 8), CropFlip(8, padding, flip)
    index = torch.tensor([3, 1, 1])
    view = torch.full((3,), augment.identity)
    assert torch.equal(augment.apply(images, index, view), images[index])


def test_samples_are_every_view_equally_often_and_repeatable() -> None:
    augment = CropFlip(8, padding=1, flip=True)
    drawn = augment.sample(18000, torch.Generator().manual_seed(3))
    counts = drawn.bincount()
    assert drawn.dtype == torch.int64 and len(counts) == augment.count == 18
    assert counts.min() > 850 and counts.max() < 1150
    assert torch.equal(drawn, augment.sample(18000, torch.Generator().manual_seed(3)))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="can't cut images of shape"):
        CropFlip(32).apply(random_images(1, 8), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="padding >= 0"):
        CropFlip(32, padding=-1)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_normalise_equals_torchvision_bit_for_bit(memory_format: torch.memory_format) -> None:
    # Every level of every channel occurs.
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    expected = torch.stack(
        [TF.normalize(TF.to_tensor(TF.to_pil_image(image)), MEAN, STD) for image in images]
    )
    got = normalise(images.contiguous(memory_format=memory_format), torch.tensor(MEAN), torch.tensor(STD))
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=memory_format)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.bfloat16, 2**-8)])
def test_normalise_in_other_precisions(dtype: torch.dtype, tolerance: float) -> None:
    images = random_images(3, 8)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    got = normalise(images, mean.flatten(), std.flatten(), dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.double(), (images.double() / 255 - mean) / std, rtol=tolerance, atol=tolerance
    )


def test_compiles_whole() -> None:
    augment, images = CropFlip(8, padding=2), random_images(6, 8)
    index, view = torch.tensor([5, 0, 2]), torch.tensor([0, 7, 49])
    mean, std = torch.tensor(MEAN), torch.tensor(STD)

    def step(index: Tensor, view: Tensor) -> Tensor:
        return normalise(augment.apply(images, index, view), mean, std)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(index, view), step(index, view))
