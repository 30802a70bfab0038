"""Processes that share batches: together they hand out what one alone does, each image once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toys import draw_folders, toy_data
from tutelage.data import ImageData, Share, StreamData, load_dataset
from tutelage.data.batch import Batch


def shared(data: ImageData, world: int, batch_size: int) -> list[list[Batch]]:
    """The batches of one epoch, as each process gets them."""
    answers = []
    for rank in range(world):
        data.share = Share(rank, world)
        answers.append(list(data.train_batches(1, 0, batch_size)))
    data.share = Share()
    return answers


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_parts_follow_each_other_and_differ_by_one_at_most(world):
    for rows in range(1, 30):
        shares = [Share(rank, world) for rank in range(world)]
        counts, places = shares[0].counts(rows), list(range(rows))
        taken = [[row for part in share.part(rows) for row in places[part]] for share in shares]
        assert sum(share.counted(rows) for share in shares) == rows
        assert sum(share.factor(rows) for share in shares) == pytest.approx(world)
        if rows < 2 * world:
            assert counts == (rows,) and all(part == places for part in taken)
        else:
            assert [row for part in taken for row in part] == places and tuple(map(len, taken)) == counts
            assert max(counts) - min(counts) <= 1 and min(counts) >= 2
        equal = rows % world == 0 and rows >= 2 * world
        assert shares[0].unequal(rows) == (None if equal or world == 1 else counts)


def test_the_factor_makes_a_mean_of_means_the_mean():
    values = torch.rand(11, dtype=torch.float64)
    means = [
        share.factor(11) * values[share.part(11)[0]].mean() for share in (Share(rank, 3) for rank in range(3))
    ]
    assert float(sum(means) / 3) == pytest.approx(float(values.mean()), rel=1e-12)


def test_shares_of_a_batch_make_the_batch():
    data = toy_data()
    alone = list(data.train_batches(1, 0, 12))
    assert [len(batch.index) for batch in alone] == [12, 12, 12, 4]
    for whole, *parts in zip(alone, *shared(data, 3, 12), strict=True):
        if len(whole.index) == 4:
            assert all(torch.equal(part.index, whole.index) for part in parts)
            continue
        for field in range(4):
            assert torch.equal(torch.cat([part[field] for part in parts]), whole[field])


def test_evaluation_hands_out_whole_batches_in_turn():
    data = toy_data()
    alone, taken = list(data.eval_batches("test", 6)), {}
    for rank in range(3):
        data.share = Share(rank, 3)
        for place, batch in enumerate(data.eval_batches("test", 6)):
            taken[rank + 3 * place] = batch
    assert [len(batch.index) for batch in alone] == [6, 6, 6, 2]
    for place, batch in enumerate(alone):
        assert all(torch.equal(one, other) for one, other in zip(batch[:4], taken[place][:4], strict=True))


def test_files_are_shared_and_an_unreadable_one_keeps_its_place(tmp_path: Path):
    folder = draw_folders(tmp_path, train=5)
    broken = sorted((folder / "train" / "apple").iterdir())[0]
    broken.write_bytes(b"no image")
    data = StreamData(load_dataset("folder", folder), "cpu", image_size=32)
    alone, both = list(data.train_batches(1, 0, 8)), shared(data, 2, 8)
    assert sum(len(batch.index) for batch in alone) == 14
    assert [len(batch.index) for batch in both[0]] == [4, 4] and [len(b.index) for b in both[1]] == [4, 3]
    together = [torch.cat([one.index, other.index]) for one, other in zip(*both, strict=True)]
    assert torch.cat(together).sort().values.tolist() == list(range(15))
    for whole, index, *parts in zip(alone, together, *both, strict=True):
        images = torch.cat([part.images for part in parts])
        kept = torch.isin(index, whole.index)
        assert torch.equal(images[kept], whole.images)
        assert (~kept).sum() == len(index) - len(whole.index)
        assert all(image.flatten(1).std(1).max() == 0 for image in images[~kept])
    places = [(batch.index.tolist()) for batch in data.eval_batches("test", 4)]
    data.share = Share(1, 2)
    assert [batch.index.tolist() for batch in data.eval_batches("test", 4)] == places[1::2]
