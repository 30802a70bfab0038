"""RandAugment, colour jitter and the transforms under them against timm, torchvision and Pillow."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_policy
from torch import Tensor
from torchvision.transforms import ColorJitter as TorchvisionJitter

from pictures import from_pillow, pictures, to_pillow
from tutelage.data import AutoAugment
from tutelage.data.affine import affine, moving, turning
from tutelage.data.chosen import change
from tutelage.data.hashing import normals, uniforms
from tutelage.data.pixels import OPERATIONS as PIXELS
from tutelage.data.randaugment import (
    DRAWS,
    OPERATIONS,
    TONES,
    ColorJitter,
    Layer,
    RandAugment,
    move_matrices,
)
from tutelage.errors import UserError

MEAN = (0.485, 0.456, 0.406)
FILL = (124, 116, 104)
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
POLICIES = ("rand-m9-mstd0.5-inc1", "rand-m7-mstd0.5", "rand-n3-m15-p0.8-mstd101-mmax20-inc1", "rand")
TIMM = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "solarize_add": "SolarizeAdd",
    "rotate": "Rotate",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
"""Names that don't depend on the scale; the others get "Increasing" in one of them."""


@pytest.fixture(autouse=True)
def posterize_to_black(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Pillow did before it refused to keep no bits, as timm asks it to at the largest magnitudes."""

    def posterize(image: Image.Image, bits: int) -> Image.Image:
        return image.point([value & ~(2 ** (8 - bits) - 1) for value in range(256)] * 3)

    monkeypatch.setattr(timm_policy.ImageOps, "posterize", posterize)


def by_timm(policy: str) -> timm_policy.RandAugment:
    """timm's transform as its transform factory makes it."""
    return timm_policy.rand_augment_transform(policy, {"img_mean": FILL})


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_are_read_as_timm_reads_them(policy: str) -> None:
    ours, theirs = RandAugment.parse(policy, MEAN), by_timm(policy)
    names = {TIMM.get(name, name.title() + "Increasing" * ours.increasing) for name in OPERATIONS}
    assert {op.name for op in theirs.ops} == names and len(theirs.ops) == len(OPERATIONS) == 15
    assert theirs.num_layers == ours.layers and theirs.choice_weights is None
    for op in theirs.ops:
        assert (op.magnitude, op.prob, op.magnitude_std) == (ours.magnitude, ours.probability, ours.deviation)
        assert (op.magnitude_max or 10) == ours.largest and op.kwargs["fillcolor"] == ours.fill


@pytest.mark.parametrize(
    "policy",
    [
        "random",
        "rand-m",
        "rand-m9.5",
        "rand-x3",
        "rand-m9-m3",
        "rand-m9-tweights",
        "augmix-m3",
        "rand-",
        "true",
    ],
)
def test_other_policies_are_refused(policy: str) -> None:
    with pytest.raises(
        UserError, match=rf"data.augment can't be '{policy}'; use true, false, autoaug"
    ) as caught:
        RandAugment.parse(policy, MEAN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [32, 45])
@pytest.mark.parametrize("cubic", [False, True])
def test_affine_transforms_are_pillows(side: int, cubic: bool) -> None:
    images = pictures(side)
    generator = torch.Generator().manual_seed(side)
    for _ in range(4):
        amount = (torch.rand(len(images), generator=generator, dtype=torch.float64) - 0.5) * side
        kinds = {
            "turn": turning(amount * 3, side, side),
            "shear": moving(1, amount / side),
            "shift": moving(5, amount),
            "any": torch.randn(len(images), 6, generator=generator, dtype=torch.float64),
        }
        for kind, matrices in kinds.items():
            got = affine(images, matrices, cubic, FILL)
            expected = from_pillow(
                to_pillow(image).rotate(float(angle), FILTERS[cubic], fillcolor=FILL)
                if kind == "turn"
                else to_pillow(image).transform(
                    (side, side),
                    Image.Transform.AFFINE,
                    tuple(matrix.tolist()),
                    FILTERS[cubic],
                    fillcolor=FILL,
                )
                for image, angle, matrix in zip(images, amount * 3, matrices, strict=True)
            )
            assert torch.equal(got, expected), kind


def test_right_angles_are_exact() -> None:
    images = pictures()
    for degrees in (0.0, 90.0, 180.0, 270.0):
        matrices = turning(torch.full((len(images),), degrees, dtype=torch.float64), 32, 32)
        assert torch.equal(affine(images, matrices, True, FILL), images.rot90(int(degrees // 90), (2, 3)))


class Scripted:
    """timm's sources of random numbers, answering what one image is given by ours."""

    def __init__(self, draws: list[float], policy: RandAugment, magnitudes: list[float]) -> None:
        self.layers = [draws[i : i + DRAWS] for i in range(0, len(draws), DRAWS)]
        self.policy, self.magnitudes = policy, magnitudes
        self.numbers: Iterator[float] = iter(())
        self.layer = -1

    def operations(self, ops: list[timm_policy.AugmentOp], count: int, **_: object) -> list[object]:
        """np.random.choice: the operations of all layers, each of which says when it is called."""
        names = [op.name for op in ops]
        scaled = "Increasing" * self.policy.increasing

        def announced(number: int) -> object:
            name = OPERATIONS[int(self.layers[number][0] * len(OPERATIONS))]
            op = ops[names.index(TIMM.get(name, name.title() + scaled))]

            def call(image: Image.Image) -> Image.Image:
                self.layer = number
                self.numbers = iter((self.layers[number][1], self.layers[number][4]))
                return op(image)

            return call

        return [announced(number) for number in range(count)]

    def random(self) -> float:
        return next(self.numbers)

    def gauss(self, mean: float, deviation: float) -> float:
        return self.magnitudes[self.layer]

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.layers[self.layer][2]

    def choice(self, filters: tuple[object, object]) -> object:
        return filters[self.layers[self.layer][5] >= 0.5]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_whole_policy_is_timms(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = RandAugment.parse(policy, MEAN), by_timm(policy)
    images = pictures().repeat(12, 1, 1, 1)
    seeds = torch.arange(1, len(images) + 1) * 7919
    draws = uniforms(seeds, DRAWS * ours.layers).double()
    noise = [normals(seeds, 2, DRAWS * n + 2, torch.float64)[:, 0].float() for n in range(ours.layers)]
    expected = []
    for row, image in enumerate(images):
        magnitudes = [ours.magnitude + ours.deviation * float(part[row]) for part in noise]
        script = Scripted(draws[row].tolist(), ours, magnitudes)
        monkeypatch.setattr(timm_policy, "random", script)
        monkeypatch.setattr(
            timm_policy, "np", SimpleNamespace(random=SimpleNamespace(choice=script.operations))
        )
        expected.append(theirs(to_pillow(image)))
    got, wanted = ours(images, seeds), from_pillow(expected)
    assert torch.equal(got, wanted), [
        (row, (got[row].int() - wanted[row].int()).abs().max())
        for row in range(len(images))
        if not torch.equal(got[row], wanted[row])
    ]
    assert (got != images).flatten(1).any(1).double().mean() > 0.5


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_at_each_magnitude_is_timms(name: str, increasing: bool) -> None:
    policy = RandAugment(increasing=increasing, probability=1.0, fill=FILL)
    op = timm_policy.AugmentOp(TIMM.get(name, name.title() + "Increasing" * increasing), prob=1.0)
    images = pictures()
    for magnitude in (0.0, 0.7, 3.0, 5.499, 9.0, 10.0, 14.0):
        for sign in (1.0, -1.0):
            layer = fixed_layer(name, magnitude, sign, len(images))
            got = (
                PIXELS[name](images, policy.strength(name, layer))
                if name in TONES
                else affine(images, move_matrices(layer, 32, 32), True, FILL)
            )
            expected = from_pillow(timms_at(op, to_pillow(image), magnitude, sign) for image in images)
            assert torch.equal(got, expected), (magnitude, sign)


def fixed_layer(name: str, magnitude: float, sign: float, count: int) -> Layer:
    return Layer(
        torch.full((count,), OPERATIONS.index(name)),
        torch.ones(count, dtype=torch.bool),
        torch.full((count,), magnitude, dtype=torch.float64),
        torch.full((count,), sign, dtype=torch.float64),
        torch.ones(count, dtype=torch.bool),
    )


def timms_at(op: timm_policy.AugmentOp, image: Image.Image, magnitude: float, sign: float) -> Image.Image:
    """timm's operation with this magnitude and sign, bicubic."""
    seed = next(s for s in range(99) if (random.Random(s).random() > 0.5) == (sign < 0))
    random.seed(seed)
    arguments = op.level_fn(magnitude, {}) if op.level_fn else ()
    return op.aug_fn(image, *arguments, fillcolor=FILL, resample=FILTERS[1])


@pytest.mark.parametrize("share", [0.4, 1.5])
def test_colour_jitter_is_torchvisions(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures().repeat(4, 1, 1, 1)
    seeds = torch.arange(1, len(images) + 1)
    jitter, theirs = ColorJitter(share), TorchvisionJitter(share, share, share)
    order, strengths = jitter.plan(seeds)
    lowest, highest = theirs.brightness
    assert 1 + strengths.min() >= lowest and 1 + strengths.max() <= highest
    shown = []
    for row, image in enumerate(images):
        wanted = (torch.cat([order[row], torch.tensor([3])]), *(1 + strengths[row]).tolist(), None)
        monkeypatch.setattr(TorchvisionJitter, "get_params", staticmethod(lambda *_, wanted=wanted: wanted))
        shown.append(theirs(to_pillow(image)))
    assert torch.equal(jitter(images, seeds), from_pillow(shown))


def test_colour_jitter_draws_every_order_and_the_whole_range() -> None:
    order, strengths = ColorJitter(0.4).plan(torch.arange(1, 12001))
    number = order[:, 0] * 9 + order[:, 1] * 3 + order[:, 2]
    assert (order.sort(1).values == torch.arange(3)).all()
    assert len(number.unique()) == 6 and number.unique(return_counts=True)[1].min() > 1800
    assert strengths.abs().max() < 0.4 and (strengths.mean(0)).abs().max() < 0.01
    torch.testing.assert_close(strengths.std(0), torch.full((3,), 0.8 / 12**0.5).double(), atol=0.005, rtol=0)


def test_operations_are_drawn_as_often_as_they_should_be() -> None:
    policy = RandAugment.parse("rand-m9-mstd0.5-inc1", MEAN)
    layers = [policy.layer(number, torch.arange(1, 30001)) for number in range(2)]
    for layer in layers:
        shares = torch.bincount(layer.operation, minlength=15) / 30000
        torch.testing.assert_close(shares, torch.full((15,), 1 / 15), atol=0.006, rtol=0)
        assert abs(float(layer.fires.float().mean()) - 0.5) < 0.01
        assert abs(float(layer.sign.mean())) < 0.02 and abs(float(layer.cubic.float().mean()) - 0.5) < 0.01
        assert abs(float(layer.magnitude.mean()) - 9) < 0.01 and layer.magnitude.max() == 10
        assert abs(float(layer.magnitude.std()) - 0.49) < 0.01
    together = torch.stack([part.double() for layer in layers for part in layer])
    assert (torch.corrcoef(together) - torch.eye(len(together))).abs().max() < 0.02


def test_normal_numbers_are_normal() -> None:
    numbers = normals(torch.arange(1, 501), 400)
    assert abs(float(numbers.mean())) < 0.01 and abs(float(numbers.std()) - 1) < 0.01
    assert abs(float((numbers.abs() < 1).float().mean()) - math.erf(2**-0.5)) < 0.01
    assert torch.equal(normals(torch.tensor([7]), 400)[0], numbers[6])
    pairs = torch.stack([numbers[:, :200].flatten(), numbers[:, 200:].flatten()])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.01


def test_an_image_depends_on_its_own_number_alone() -> None:
    images = pictures()
    seeds = torch.tensor([5, 0, 9, 5, 0, 12345678901, 2**31 - 1, 3, 4, 1])
    for policy in (RandAugment.parse("rand-m9-mstd0.5-inc1", MEAN), ColorJitter(0.4)):
        made = policy(images, seeds)
        backwards = policy(images.flip(0), seeds.flip(0)).flip(0)
        alone = torch.cat(
            [policy(image[None], seed[None]) for image, seed in zip(images, seeds, strict=True)]
        )
        assert torch.equal(made, backwards) and torch.equal(made, alone)
        assert torch.equal(made[seeds == 0], images[seeds == 0])


class Elsewhere(torch.Tensor):
    """A tensor that says it is on another device: what is chosen by it takes the device's way."""

    device = torch.device("meta")


def test_a_choice_on_the_device_gives_what_one_on_the_host_gives() -> None:
    def operation(some: Tensor, amount: Tensor) -> Tensor:
        return some * 2 + amount[:, None, None, None]

    images, strength, chosen = pictures().float(), torch.arange(10.0), torch.arange(10) % 3 == 0
    expected = images.clone()
    for row in (0, 3, 6, 9):
        expected[row] = images[row] * 2 + row
    for choice in (chosen, chosen.as_subclass(Elsewhere)):
        made = images.clone()
        change(made, choice, operation, strength)
        assert torch.equal(made, expected)


def test_policies_give_the_same_by_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    images, seeds = pictures(), torch.arange(3, 13)
    policies = (RandAugment.parse("rand-m9-mstd0.5-inc1", MEAN), ColorJitter(0.4), AutoAugment())
    by_host = [policy(images, seeds) for policy in policies]

    def on_the_device(some: Tensor, chosen: Tensor, *rest: Any) -> None:
        change(some, chosen.as_subclass(Elsewhere), *rest)

    for module in ("randaugment", "autoaugment"):
        monkeypatch.setattr(f"tutelage.data.{module}.change", on_the_device)
    for policy, expected in zip(policies, by_host, strict=True):
        made = policy(images, seeds).as_subclass(Tensor)
        assert torch.equal(made, expected) and not torch.equal(made, images)
