"""The registry, and the datasets that need no files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as embedded_digits

from tutelage.data import (
    Dataset,
    DatasetInfo,
    catalog,
    dataset_info,
    dataset_names,
    load_dataset,
    make_shapes,
    register_dataset,
)
from tutelage.errors import UserError


def enlarge_by_hand(grey: np.ndarray, side: int) -> np.ndarray:
    """Bilinear enlargement with pixel centres at half-integers, in float64."""
    position = (np.arange(side) + 0.5) * len(grey) / side - 0.5
    position = position.clip(0, len(grey) - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, len(grey) - 1)
    share = position - low
    rows = grey[low] * (1 - share)[:, None] + grey[high] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, high] * share


def test_known_names_and_facts() -> None:
    known = {"cifar10", "cifar100", "digits", "folder", "hfds", "imagenet", "shapes", "tar", "wds"}
    assert known <= set(dataset_names()) and dataset_names() == sorted(dataset_names())
    info = dataset_info("cifar100")
    assert (info.num_classes, info.train_count, info.test_count, info.image_size) == (100, 50000, 10000, 32)
    assert info.class_names[:2] == ("apple", "aquarium_fish") and info.class_names[99] == "worm"
    assert list(info.class_names) == sorted(info.class_names)
    assert info.mean == (0.5071, 0.4867, 0.4408) and info.std == (0.2675, 0.2565, 0.2761)
    assert info.augment.count == 162
    assert dataset_info("cifar10").class_names[9] == "truck"


def test_unknown_name_is_answered_with_the_nearest() -> None:
    for ask in (dataset_info, load_dataset):
        with pytest.raises(UserError, match="no dataset 'cifar-100'; did you mean 'cifar100'"):
            ask("cifar-100")


def test_datasets_are_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_REGISTRY", dict(catalog._REGISTRY))
    info = replace(dataset_info("shapes"), name="mine")
    seen: list[tuple[Path | None, bool]] = []

    @register_dataset(info)
    def mine(info: DatasetInfo, folder: Path | None, download: bool) -> Dataset:
        seen.append((folder, download))
        return replace(make_shapes(1, 1), info=info)

    assert load_dataset("mine", Path("there"), download=True).info is info
    assert seen == [(Path("there"), True)]
    assert "mine" in dataset_names()
    with pytest.raises(ValueError, match="exists already"):
        register_dataset(info)(mine)


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_embedded_datasets_are_as_described(name: str) -> None:
    data = load_dataset(name)
    info = dataset_info(name)
    assert data.info == info
    assert (len(data.train_labels), len(data.test_labels)) == (info.train_count, info.test_count)
    assert data.train_labels.unique().tolist() == list(range(info.num_classes))
    scaled = data.train_images.double() / 255
    assert scaled.mean((0, 2, 3)).tolist() == pytest.approx(info.mean, abs=0.005)
    assert scaled.std((0, 2, 3)).tolist() == pytest.approx(info.std, abs=0.005)
    again = load_dataset(name)
    assert torch.equal(again.train_images, data.train_images) and torch.equal(
        again.test_labels, data.test_labels
    )


def test_digits_are_the_enlarged_originals() -> None:
    data, original = load_dataset("digits"), embedded_digits()
    assert not data.info.flip and data.info.augment.count == 81
    images = torch.cat([data.train_images, data.test_images])
    labels = torch.cat([data.train_labels, data.test_labels])
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    by_hand = np.stack([enlarge_by_hand(grey * 255 / 16, 32) for grey in original.images])
    # Every original occurs once, so sorting both by label and content pairs them up.
    mine = sorted(
        (int(y), float(x.double().sum()), tuple(x[0, 15].tolist()))
        for x, y in zip(images, labels, strict=True)
    )
    rounded = np.floor(by_hand + 0.5)
    theirs = sorted(
        (int(y), float(3 * x.sum()), tuple(x[15].astype(int).tolist()))
        for x, y in zip(rounded, original.target, strict=True)
    )
    close = [
        a[0] == b[0] and abs(a[1] - b[1]) <= 30 and np.abs(np.subtract(a[2], b[2])).max() <= 1
        for a, b in zip(mine, theirs, strict=True)
    ]
    assert all(close)


def test_digits_split_is_stratified() -> None:
    data = load_dataset("digits")
    counts = torch.cat([data.train_labels, data.test_labels]).bincount()
    share = data.train_labels.bincount() / counts
    assert (share - 1000 / 1797).abs().max() < 0.01


def test_shapes_follow_the_seed() -> None:
    data = make_shapes(3, 2, seed=1)
    assert data.train_images.shape == (30, 3, 32, 32) and data.test_images.shape == (20, 3, 32, 32)
    assert (
        data.train_labels.bincount().tolist() == [3] * 10 and data.test_labels.bincount().tolist() == [2] * 10
    )
    assert (data.info.train_count, data.info.test_count) == (30, 20)
    assert torch.equal(data.train_images, make_shapes(3, 2, seed=1).train_images)
    assert not torch.equal(data.train_images, make_shapes(3, 2, seed=2).train_images)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"train_images": torch.zeros(2, 3, 32, 32)}, "train part of dataset shapes must hold uint8 images"),
        ({"test_images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "test part .* must hold uint8 images"),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, "one int64 label for each of its 10 images"),
        ({"train_labels": torch.zeros(10)}, "one int64 label"),
        ({"train_labels": torch.arange(10) + 1}, "labels 1..10, but the classes are 0..9"),
        (
            {
                "test_images": torch.zeros(0, 3, 32, 32, dtype=torch.uint8),
                "test_labels": torch.zeros(0, dtype=torch.int64),
            },
            "at least one",
        ),
    ],
)
def test_unsound_datasets_are_refused(change: dict[str, torch.Tensor], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(make_shapes(1, 1), **change)
