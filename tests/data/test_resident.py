"""Resident data: the right images in a repeatable order, from any step on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torchvision.transforms.functional as TF
from torch import Tensor, nn

from tutelage.data import Batch, CropFlip, Dataset, ResidentData, dataset_info, make_shapes, validation_split
from tutelage.errors import UserError


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_shapes(train_per_class=5, test_per_class=2)


def by_hand(image: Tensor, view: int, data: ResidentData) -> Tensor:
    """One training image cropped, flipped and normalised by torchvision."""
    corner, mirrored = divmod(view, 2)
    top, left = divmod(corner, data.augment.offsets)
    picture = TF.pad(TF.to_pil_image(image), data.augment.padding)
    picture = TF.crop(picture, top, left, data.augment.size, data.augment.size)
    picture = TF.hflip(picture) if mirrored else picture
    return TF.normalize(TF.to_tensor(picture), data.info.mean, data.info.std)


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left[:4], right[:4], strict=True))


def test_batches_hold_the_named_views_of_the_named_rows(dataset: Dataset) -> None:
    rows = torch.tensor([7, 3, 41, 12, 0, 49, 18])
    data = ResidentData(dataset, "cpu", train_indices=rows)
    assert data.train_size == 7 and torch.equal(data.train_labels, dataset.train_labels[rows])
    batches = list(data.train_batches(epoch=0, seed=0, batch_size=3))
    assert [len(batch.images) for batch in batches] == [3, 3, 1]
    for batch in batches:
        for image, target, index, view in zip(*batch[:4], strict=True):
            original = dataset.train_images[rows[index]]
            assert torch.equal(image, by_hand(original, int(view), data))
            assert target == dataset.train_labels[rows[index]]
    seen = torch.cat([batch.index for batch in batches])
    assert sorted(seen.tolist()) == list(range(7))
    assert seen.dtype == batches[0].targets.dtype == batches[0].view.dtype == torch.int64


def test_order_and_views_follow_seed_and_epoch_alone(dataset: Dataset) -> None:
    data, other = ResidentData(dataset, "cpu"), ResidentData(dataset, "cpu", augment=CropFlip(32, 4))
    orders = {(epoch, seed): data.epoch_order(epoch, seed) for epoch in range(3) for seed in range(3)}
    for order in orders.values():
        assert torch.equal(order.rows.sort().values, torch.arange(data.train_size))
        assert order.views.min() >= 0 and order.views.max() < data.augment.count
    keys = list(orders)
    for i, first in enumerate(keys):
        for second in keys[:i]:
            assert not torch.equal(orders[first].rows, orders[second].rows)
            assert not torch.equal(orders[first].views, orders[second].views)
    torch.manual_seed(99)
    again = data.epoch_order(2, 1)
    assert torch.equal(again.rows, orders[2, 1].rows) and torch.equal(again.views, orders[2, 1].views)
    assert torch.equal(other.epoch_order(2, 1).rows, again.rows)


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5])
def test_an_epoch_can_be_entered_at_any_step(dataset: Dataset, start: int) -> None:
    whole = list(ResidentData(dataset, "cpu").train_batches(epoch=4, seed=2, batch_size=11))
    assert len(whole) == 5
    rest = ResidentData(dataset, "cpu").train_batches(epoch=4, seed=2, batch_size=11, start_step=start)
    assert_same(list(rest), whole[start:])


def test_take_repeats_a_batch(dataset: Dataset) -> None:
    data = ResidentData(dataset, "cpu")
    batch = next(data.train_batches(epoch=1, seed=1, batch_size=8))
    assert_same([data.take(batch.index, batch.view)], [batch])


def test_number_of_steps(dataset: Dataset) -> None:
    data = ResidentData(dataset, "cpu")
    assert data.train_size == 50
    assert [data.steps_per_epoch(size) for size in (1, 7, 25, 50, 64)] == [50, 8, 2, 1, 1]
    data.drop_last = True
    assert [data.steps_per_epoch(size) for size in (1, 7, 25, 50)] == [50, 7, 2, 1]
    dropped = list(data.train_batches(0, 0, 7))
    assert len(dropped) == 7 and all(len(batch.images) == 7 for batch in dropped)
    data.drop_last = False
    assert_same(dropped, list(data.train_batches(0, 0, 7))[:7])


def test_evaluation_shows_every_image_once_as_it_is(dataset: Dataset) -> None:
    train, val = validation_split(dataset.train_labels, 0.2)
    data = ResidentData(dataset, "cpu", train_indices=train, val_indices=val)
    expected = {
        "train": (dataset.train_images[train], dataset.train_labels[train]),
        "val": (dataset.train_images[val], dataset.train_labels[val]),
        "test": (dataset.test_images, dataset.test_labels),
    }
    for split, (images, labels) in expected.items():
        assert data.size(split) == len(labels)
        batches = list(data.eval_batches(split, 6))
        plain = torch.stack(
            [TF.normalize(TF.to_tensor(TF.to_pil_image(x)), data.info.mean, data.info.std) for x in images]
        )
        assert torch.equal(torch.cat([batch.images for batch in batches]), plain)
        assert torch.equal(torch.cat([batch.targets for batch in batches]), labels)
        assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(len(labels)))
        assert all((batch.view == data.augment.identity).all() for batch in batches)
    assert torch.equal(data.take(torch.tensor([2]), torch.tensor([data.augment.identity])).images,
                       next(data.eval_batches("train", 6)).images[2:3])  # fmt: skip


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_format_and_type_of_batches(dataset: Dataset, channels_last: bool, dtype: torch.dtype) -> None:
    data = ResidentData(dataset, "cpu", channels_last=channels_last, dtype=dtype)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    for batch in (next(data.train_batches(0, 0, 4)), next(data.eval_batches("test", 4))):
        assert batch.images.dtype == dtype and batch.images.is_contiguous(memory_format=wanted)


def test_other_normalisation(dataset: Dataset) -> None:
    data = ResidentData(dataset, "cpu", mean=(0.0, 0.0, 0.0), std=(1.0, 0.5, 0.25))
    images = next(data.eval_batches("test", 3)).images
    expected = dataset.test_images[:3] / 255 / torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1)
    torch.testing.assert_close(images, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("train", "val", "sentence"),
    [
        ([0, 50], None, "training rows must lie in 0..49, got 0..50"),
        ([-1], None, "training rows must lie in 0..49"),
        ([3, 3], None, "training rows name some images twice"),
        ([], None, "training subset is empty"),
        ([0, 1], [1, 2], "also trained on"),
        (None, [1, 2], "also trained on"),
        ([0, 1], [99], "validation rows must lie"),
    ],
)
def test_unsound_rows_are_refused(
    dataset: Dataset, train: list[int] | None, val: list[int] | None, sentence: str
) -> None:
    train_rows, val_rows = (
        None if rows is None else torch.tensor(rows, dtype=torch.int64) for rows in (train, val)
    )
    with pytest.raises(UserError, match=sentence):
        ResidentData(dataset, "cpu", train_indices=train_rows, val_indices=val_rows)


def test_other_unsound_requests(dataset: Dataset) -> None:
    data = ResidentData(dataset, "cpu", val_indices=torch.tensor([], dtype=torch.int64))
    assert data.size("val") == 0
    with pytest.raises(UserError, match="no 'val' split, only train, test; hold out"):
        next(data.eval_batches("val", 4))
    for call in (data.steps_per_epoch, lambda size: next(data.eval_batches("test", size))):
        with pytest.raises(UserError, match="batch size must be at least 1, not 0"):
            call(0)
    data.drop_last = True
    with pytest.raises(UserError, match="64 leaves no whole batch of 50"):
        data.steps_per_epoch(64)
    with pytest.raises(UserError, match="cuts images of 28 pixels, but those of shapes have 32"):
        ResidentData(dataset, "cpu", augment=CropFlip(28))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Layers this small are slower on several threads, far slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_shapes_are_learnt_in_seconds() -> None:
    torch.manual_seed(0)
    data = ResidentData(make_shapes(60, 20), "cpu")
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, dataset_info("shapes").num_classes)
    )
    epochs = 8
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 0.2, total_steps=epochs * data.steps_per_epoch(32)
    )
    for epoch in range(epochs):
        for batch in data.train_batches(epoch, 0, 32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(batch.images), batch.targets).backward()
            optimiser.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        right = sum(
            (net(batch.images).argmax(1) == batch.targets).sum() for batch in data.eval_batches("test", 100)
        )
    assert right / 200 > 0.8
