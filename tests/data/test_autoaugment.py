"""AutoAugment's operations against Pillow's, and the policy as views."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from pictures import from_pillow, pictures, to_pillow
from tutelage.data import ResidentData, make_shapes
from tutelage.data.autoaugment import CIFAR10_POLICY, AutoAugment, strength
from tutelage.data.finish import SEEDS
from tutelage.data.hashing import uniforms
from tutelage.data.pixels import OPERATIONS, cutout

FILL = (128, 128, 128)


def rotated(image: Image.Image, angle: float) -> Image.Image:
    turned = image.convert("RGBA").rotate(angle)
    return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert("RGB")


def moved(image: Image.Image, x: float, y: float) -> Image.Image:
    matrix = (1, 0, x * image.size[0], 0, 1, y * image.size[1])
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=FILL)


def sheared(image: Image.Image, share: float) -> Image.Image:
    matrix = (1, 0, 0, share, 1, 0)
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL
    )


PILLOW = {
    "invert": lambda image, v: ImageOps.invert(image),
    "solarize": lambda image, v: ImageOps.solarize(image, v),
    "posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(1 + v),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(1 + v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(1 + v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(1 + v),
    "autocontrast": lambda image, v: ImageOps.autocontrast(image),
    "equalize": lambda image, v: ImageOps.equalize(image),
    "shear_y": sheared,
    "translate_x": lambda image, v: moved(image, v, 0),
    "translate_y": lambda image, v: moved(image, 0, v),
    "rotate": rotated,
}


def by_pillow(name: str, images: Tensor, values: Tensor) -> Tensor:
    return from_pillow(
        PILLOW[name](to_pillow(image), float(v)) for image, v in zip(images, values, strict=True)
    )


@pytest.mark.parametrize("name", sorted(PILLOW))
@pytest.mark.parametrize("sign", [1, -1])
def test_operations_are_pillows(name: str, sign: int) -> None:
    images = pictures()
    magnitudes = [m % 10 for m in range(len(images))]
    for shift in (0, 3, 7):
        values = torch.tensor(
            [
                sign ** (name not in ("solarize", "posterize")) * strength(name, (m + shift) % 10)
                for m in magnitudes
            ]
        )
        got, expected = OPERATIONS[name](images, values), by_pillow(name, images, values)
        assert torch.equal(got, expected), (got.int() - expected.int()).abs().max()


def test_the_hole_is_black_and_clipped() -> None:
    images = torch.full((3, 3, 32, 32), 9, dtype=torch.uint8)
    holes = cutout(images, torch.tensor([16, 0, 31]), torch.tensor([16, 31, 5]), 16)
    assert [(hole == 0).sum().item() // 3 for hole in holes] == [16 * 16, 8 * 9, 9 * 13]
    assert (holes[0, :, 8:24, 8:24] == 0).all()


def test_numbers_from_seeds_are_uniform_and_independent() -> None:
    draws = uniforms(torch.arange(1, 20001), 7)
    assert draws.min() >= 0 and draws.max() < 1
    torch.testing.assert_close(draws.mean(0), torch.full((7,), 0.5), atol=0.01, rtol=0)
    correlation = torch.corrcoef(torch.cat([draws[:-1], draws[1:]], 1).T) - torch.eye(14)
    assert correlation.abs().max() < 0.03
    assert torch.equal(uniforms(torch.tensor([5]), 7)[0], draws[4])


def test_policy_fires_as_often_as_it_says() -> None:
    image = pictures()[:1]
    made = AutoAugment(hole=0)(image.expand(4000, -1, -1, -1), torch.arange(1, 4001))
    share = (made != image).flatten(1).any(1).double().mean()
    # An operation of strength 0 (the second of "brightness 0.1 3, color 0.7 0") changes nothing.
    chance = [1 - (1 - a * (m > 0)) * (1 - b * (n > 0)) for _, a, m, _, b, n in without_idle(CIFAR10_POLICY)]
    assert abs(float(share) - sum(chance) / len(chance)) < 0.03


def without_idle(policy: tuple) -> list[tuple]:
    """The policy with magnitudes of 1 where the operation knows none, and 0 where noise stays as it is."""
    free, idle = ("invert", "equalize", "autocontrast"), ("autocontrast",)
    return [
        (
            o1,
            p1,
            0 if o1 in idle else 1 if o1 in free else m1,
            o2,
            p2,
            0 if o2 in idle else 1 if o2 in free else m2,
        )
        for o1, p1, m1, o2, p2, m2 in policy
    ]


def test_resident_data_takes_it() -> None:
    data = ResidentData(make_shapes(4, 2), "cpu", policy=AutoAugment())
    batch = next(data.train_batches(0, 0, 8))
    assert batch.images.shape == (8, 3, 32, 32) and data.view_count == SEEDS * data.crop_count
    assert data.crop_count < batch.view.min() and batch.view.max() < data.view_count
    plain = data.take(batch.index, batch.view % data.crop_count)
    assert not torch.equal(plain.images, batch.images)
    assert torch.equal(data.take(batch.index.flip(0), batch.view.flip(0)).images.flip(0), batch.images)
