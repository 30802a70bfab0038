"""Repeated augmentation against timm's sampler, and epochs that leave out their last batch."""

from __future__ import annotations

import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler

from tutelage.data import ImageData, ResidentData, Share, make_shapes


def data_of(images: int) -> ImageData:
    return ResidentData(make_shapes(50, 1), "cpu", train_indices=torch.arange(images))


@pytest.mark.parametrize(("images", "repeats"), [(300, 3), (300, 1), (40, 3)])
def test_the_order_is_timms(images: int, repeats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(images)
    permutation = data.epoch_order(2, 5).rows
    data.repeats = repeats
    order = data.epoch_order(2, 5)
    sampler = RepeatAugSampler(range(images), 1, 0, num_repeats=repeats)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randperm", lambda *_, **__: permutation)
        assert order.rows.tolist() == list(sampler)
    assert len(order.rows) == len(sampler) == data.epoch_size == len(order.views)
    assert len(set(zip(*(part.tolist() for part in order), strict=True))) > 0.9 * len(order.rows)


def test_batches_have_the_copies_next_to_each_other_in_views_of_their_own() -> None:
    data = data_of(300)
    data.repeats = 3
    batches = list(data.train_batches(0, 0, 60))
    assert [len(batch.index) for batch in batches] == [60, 60, 60, 60, 16] and data.steps_per_epoch(60) == 5
    first = batches[0].index.view(20, 3)
    assert (first == first[:, :1]).all() and len(first[:, 0].unique()) == 20
    assert sum(len(set(views)) > 1 for views in batches[0].view.view(20, 3).tolist()) > 15
    again = next(data.train_batches(0, 0, 60, start_step=4))
    assert torch.equal(again.images, batches[4].images) and data.batch_rows(4, 60) == 16
    for rank in range(2):
        data.share = Share(rank, 2)
        part = next(data.train_batches(0, 0, 60, start_step=4))
        assert torch.equal(part.index, again.index[8 * rank : 8 * rank + 8])


def test_an_epoch_may_end_with_a_whole_batch() -> None:
    data = data_of(50)
    data.drop_last = True
    assert [len(batch.index) for batch in data.train_batches(0, 0, 16)] == [16, 16, 16]
    data.share = Share(1, 2)
    assert [len(batch.index) for batch in data.train_batches(0, 0, 16)] == [8, 8, 8]
