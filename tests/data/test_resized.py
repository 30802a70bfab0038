"""Cutting and enlarging on the device, against Pillow and torchvision."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from tutelage.data import ResidentData, make_shapes
from tutelage.data.hashing import uniforms
from tutelage.data.resized import ResizedViews, Window, resize


def pictures(count: int = 4, side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    return transforms.functional.pil_to_tensor(image)


@pytest.mark.parametrize("cubic", [True, False])
@pytest.mark.parametrize("size", [224, 20])
def test_windows_are_filled_as_by_pillow(cubic: bool, size: int) -> None:
    images = pictures()
    windows = [(0, 0, 32, 32), (3, 5, 10, 21), (31, 0, 1, 32), (7, 20, 25, 12)]
    kind = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    expected = [
        from_pillow(to_pillow(image).resize((size, size), kind, (left, top, left + w, top + h)))
        for image, (top, left, h, w) in zip(images, windows, strict=True)
    ]
    window = Window(*(torch.tensor(part, dtype=torch.float32) for part in zip(*windows, strict=True)))
    got = resize(images, window, size, torch.full((4,), cubic), torch.tensor([False, False, True, False]))
    expected[2] = expected[2].flip(2)
    difference = (got.int() - torch.stack(expected).int()).abs()
    assert difference.max() <= 1 and (difference > 0).double().mean() < 0.03


@pytest.mark.parametrize("cubic", [True, False])
@pytest.mark.parametrize("size", [64, 12])
def test_crops_are_those_of_torchvision(cubic: bool, size: int) -> None:
    images = pictures()
    windows = [(0, 0, 32, 32), (3, 5, 10, 21), (31, 0, 1, 32), (7, 20, 25, 12)]
    kind = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
    expected = [
        from_pillow(transforms.functional.resized_crop(to_pillow(image), *window, [size, size], kind))
        for image, window in zip(images, windows, strict=True)
    ]
    window = Window(*(torch.tensor(part, dtype=torch.float32) for part in zip(*windows, strict=True)))
    yes, no = torch.full((4,), True), torch.full((4,), False)
    kinds = torch.full((4,), cubic)
    got = resize(images, window, size, kinds, no, cut=yes)
    difference = (got.int() - torch.stack(expected).int()).abs()
    assert difference.max() <= 1 and (difference > 0).double().mean() < 0.03
    mixed = resize(images, window, size, kinds, no, cut=torch.tensor([True, True, False, False]))
    assert torch.equal(mixed[:2], got[:2])
    assert torch.equal(mixed[2:], resize(images, window, size, kinds, no)[2:])
    assert not torch.equal(mixed[3], got[3])


def test_a_view_is_a_crop_of_torchvision() -> None:
    images = pictures(6, 96)
    views = ResizedViews(96, 32, 1.0, "bilinear")
    numbers = torch.tensor([0, 5, 77, 1234, 99999, 2**31 - 1])
    got = views.apply(images, torch.arange(6), numbers)
    draws = uniforms(numbers, 42)
    window = views._window(draws[:, :40].view(6, 10, 4))
    flips = draws[:, -1] < 0.5
    for row in range(6):
        image = to_pillow(images[row])
        if row == 0:
            expected = transforms.functional.resize(image, 32)
        else:
            place = [int(part[row]) for part in window]
            expected = transforms.functional.resized_crop(image, *place, [32, 32])
            expected = transforms.functional.hflip(expected) if flips[row] else expected
        difference = (got[row].int() - from_pillow(expected).int()).abs()
        assert difference.max() <= 1 and (difference > 0).double().mean() < 0.03


@pytest.mark.parametrize(("share", "side"), [(0.875, 256), (0.9, 248)])
def test_the_plain_view_is_timms_evaluation(share: float, side: int) -> None:
    reference = transforms.Compose(
        [
            transforms.Resize(side, InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.PILToTensor(),
        ]
    )
    images = pictures()
    got = ResizedViews(32, 224, share).plain(images)
    expected = torch.stack([reference(to_pillow(image)) for image in images])
    difference = (got.int() - expected.int()).abs()
    assert difference.max() <= 1 and (difference > 0).double().mean() < 0.03


def test_windows_have_the_shares_and_shapes_of_torchvisions() -> None:
    views = ResizedViews(32, 64)
    window = views._window(uniforms(torch.arange(1, 4001), 40).view(4000, 10, 4))
    ours = torch.stack([window.height * window.width / 1024, window.width / window.height], 1)
    assert ((window.top + window.height <= 32) & (window.left + window.width <= 32)).all()
    torch.manual_seed(0)
    image, theirs = Image.new("RGB", (32, 32)), []
    for _ in range(4000):
        _, _, h, w = transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        theirs.append((h * w / 1024, w / h))
    reference = torch.tensor(theirs)
    torch.testing.assert_close(ours.mean(0), reference.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(ours.std(0), reference.std(0), atol=0.02, rtol=0)


def test_half_of_the_views_are_mirrored_and_half_are_bicubic() -> None:
    images = pictures(1)
    rows = torch.zeros(400, dtype=torch.int64)
    views = torch.arange(1, 401)
    flipping = ResizedViews(32, 16, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    made = {bytes(image.flatten().tolist()) for image in flipping.apply(images, rows, views)}
    assert len(made) == 4  # two filters, two directions
    counts = [
        sum(torch.equal(image, kind) for image in flipping.apply(images, rows, views))
        for kind in flipping.apply(images, rows, views).unique(dim=0)
    ]
    assert all(60 < count < 140 for count in counts)


def test_resident_images_come_out_enlarged() -> None:
    data = ResidentData(make_shapes(4, 2), "cpu", augment=ResizedViews(32, 48))
    assert data.info.image_size == 48
    batch = next(data.train_batches(0, 0, 8))
    assert batch.images.shape == (8, 3, 48, 48)
    assert torch.equal(data.take(batch.index, batch.view).images, batch.images)
    plain = next(data.eval_batches("train", 8))
    assert plain.images.shape == (8, 3, 48, 48)
    assert torch.equal(data.take(plain.index, plain.view).images, plain.images)
