"""Mixup and CutMix against timm's, and batches that are mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import Mixup

from toys import draw_folders, toy_data
from tutelage.data import ImageData, Mix, Mixing, RandomErasing, Share, StreamData, load_dataset
from tutelage.data.mixing import _seed

CHOICES = {
    "mixup": Mixing(7, mixup=0.8),
    "cutmix": Mixing(7, cutmix=1.0),
    "both": Mixing(7, mixup=0.8, cutmix=1.0),
    "rarely": Mixing(7, mixup=0.1, cutmix=1.0, probability=0.4, switch=0.8),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_batch_is_timms(name: str) -> None:
    mixing = CHOICES[name]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 20, 20, generator=generator)
    labels = torch.randint(7, (6,), generator=generator)
    kinds = set()
    for step in range(60):
        theirs = Mixup(
            mixing.mixup, mixing.cutmix, None, mixing.probability, mixing.switch, "batch", True, 0.0, 7
        )
        np.random.seed(_seed(3, 2, step))
        expected, soft = theirs(images.clone(), labels)
        mix = mixing.draw(3, 2, step, 20)
        before = images.clone()
        assert torch.equal(mix.images(images), expected) and torch.equal(images, before)
        assert torch.equal(mix.labels(labels, 7), soft)
        kinds.add("none" if mix.share == 1 and mix.box is None else "cutmix" if mix.box else "mixup")
    wanted = {"both": {"mixup", "cutmix"}, "rarely": {"none", "mixup", "cutmix"}}
    assert kinds == wanted.get(name, {name})


def test_smoothing_by_the_criterion_is_smoothing_of_the_mixed_labels() -> None:
    from tutelage.methods import create_method

    labels, scores = torch.tensor([0, 3, 6, 6]), torch.randn(4, 7)
    method = create_method("none", label_smoothing=0.1)
    for step in range(5):
        np.random.seed(_seed(0, 0, step))
        theirs = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=7)
        _, soft = theirs(torch.zeros(4, 3, 8, 8), labels)
        expected = -(soft.double() * scores.double().log_softmax(1)).sum(1).mean()
        mixed = CHOICES["both"].draw(0, 0, step, 8).labels(labels, 7)
        assert float(method.label_loss(scores, mixed)) == pytest.approx(float(expected), rel=1e-5)


def test_draws_depend_on_seed_epoch_and_step_and_end_with_the_epoch() -> None:
    mixing = CHOICES["both"]
    draws = {mixing.draw(*place, 32) for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0))}
    assert len(draws) == 4
    until = replace(mixing, off_epoch=5)
    assert until.draw(0, 4, 0, 32) == mixing.draw(0, 4, 0, 32) != Mix()
    assert until.draw(0, 5, 0, 32) == until.draw(0, 9, 3, 32) == Mix()
    shares = torch.tensor([CHOICES["mixup"].draw(0, 0, step, 32).share for step in range(2000)])
    assert abs(float(shares.mean()) - 0.5) < 0.02 and abs(float(shares.var()) - 1 / (4 * 2.6)) < 0.01


def test_the_middle_of_an_odd_batch_stays() -> None:
    images, labels = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4])
    for mix in (Mix(0.3), Mix(0.75, CHOICES["cutmix"].draw(0, 0, 1, 8).box)):
        made, soft = mix.images(images), mix.labels(labels, 5)
        torch.testing.assert_close(made[2], images[2])
        torch.testing.assert_close(soft[2], torch.eye(5)[2])
        assert not torch.equal(made[0], images[0])
        torch.testing.assert_close(soft[0], mix.share * torch.eye(5)[0] + (1 - mix.share) * torch.eye(5)[4])


def test_batches_are_mixed_from_any_step_on_and_erased_afterwards() -> None:
    data, plain = toy_data(), toy_data()
    data.mixing = replace(CHOICES["both"], classes=data.info.num_classes, off_epoch=2)
    for epoch in range(3):
        whole = list(data.train_batches(epoch, 0, 11))
        assert [len(batch.targets) for batch in whole] == [11, 11, 11, 7]
        for step, (batch, unmixed) in enumerate(zip(whole, plain.train_batches(epoch, 0, 11), strict=True)):
            mix = data.mix(0, epoch, step)
            assert torch.equal(batch.images, mix.images(unmixed.images))
            assert torch.equal(batch.targets, mix.labels(unmixed.targets, data.info.num_classes))
            assert torch.equal(batch.index, unmixed.index) and batch.targets.dtype == torch.float32
            assert torch.equal(batch.images, unmixed.images) == (epoch == 2)
        for batch, again in zip(whole[2:], data.train_batches(epoch, 0, 11, start_step=2), strict=True):
            assert torch.equal(batch.images, again.images)
    assert torch.equal(
        data.take(batch.index, batch.view).targets, plain.take(batch.index, batch.view).targets
    )


def test_erasing_comes_after_mixing() -> None:
    from tutelage.data import ResidentData, make_shapes

    data = ResidentData(make_shapes(4, 2), "cpu", erasing=RandomErasing(1.0))
    data.mixing = Mixing(data.info.num_classes, mixup=1.0)
    plain = toy_data()
    batch = next(data.train_batches(0, 0, 16))
    crops = plain.take(batch.index, batch.view % data.crop_count).images
    expected = RandomErasing(1.0)(data.mix(0, 0, 0).images(crops), data.draws(batch.view))
    assert torch.equal(batch.images, expected)


def parts_of(data: ImageData, world: int, size: int) -> list[list]:
    found = []
    for rank in range(world):
        data.share = Share(rank, world, paired=True)
        found.append(list(data.train_batches(1, 0, size)))
    data.share = Share()
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_have_the_batch_of_one(world: int, tmp_path: Path) -> None:
    stream = StreamData(load_dataset("folder", draw_folders(tmp_path, train=7)), "cpu", image_size=32)
    for data in (toy_data(), stream):
        data.mixing = Mixing(data.info.num_classes, mixup=0.8, cutmix=1.0)
        alone = list(data.train_batches(1, 0, 12))
        assert len(alone[-1].index) % 12 > 0
        for whole, *parts in zip(alone, *parts_of(data, world, 12), strict=True):
            if len(whole.index) < 2 * world:
                assert all(torch.equal(part.images, whole.images) for part in parts)
                continue
            assert max(len(p.index) for p in parts) - min(len(p.index) for p in parts) <= 2
            together = torch.cat([part.index for part in parts])
            order = [together.tolist().index(row) for row in whole.index.tolist()]
            for field in range(4):
                assert torch.equal(torch.cat([part[field] for part in parts])[order], whole[field])


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_paired_parts_hold_a_batch_once_and_keep_partners_opposite(world: int) -> None:
    for rows in range(1, 40):
        shares = [Share(rank, world, paired=True) for rank in range(world)]
        places = list(range(rows))
        taken = [[row for part in share.part(rows) for row in places[part]] for share in shares]
        counts = shares[0].counts(rows)
        assert sum(share.counted(rows) for share in shares) == rows
        if rows < 2 * world or world == 1:
            assert counts == (rows,) and all(part == places for part in taken)
            continue
        assert sorted(row for part in taken for row in part) == places and tuple(map(len, taken)) == counts
        assert all(
            row == rows - 1 - other for part in taken for row, other in zip(part, part[::-1], strict=True)
        )
        assert max(counts) - min(counts) <= 2 and min(counts) >= 2
