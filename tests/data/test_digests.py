"""What tells datasets of one name apart: their labels and images, not the place where they lie."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data import ResidentData, StreamData, load_dataset
from tutelage.data.digests import SAMPLED, digest, sampled
from tutelage.data.shapes import make_shapes
from tutelage.errors import UserError


def folder(where: Path, seed: int, test_images: int = 2) -> Path:
    """Two classes of noise: other images for another seed, under the same names and of the same sizes."""
    random = np.random.default_rng(seed)
    for split, count in (("train", 3), ("val", test_images)):
        for name in ("cat", "dog"):
            (where / split / name).mkdir(parents=True)
            for number in range(count):
                image = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(image).save(where / split / name / f"{number}.png")
    return where


def digests(where: Path) -> tuple[str, str]:
    data = StreamData(load_dataset("folder", where), "cpu", 16)
    return data.digest("train"), data.digest("test")


def test_a_folder_is_known_by_what_is_in_it_and_not_by_its_place(tmp_path: Path) -> None:
    one = digests(folder(tmp_path / "one", 0))
    assert digests((tmp_path / "one").rename(tmp_path / "moved")) == one
    other = digests(folder(tmp_path / "other", 1))
    assert one[0] != other[0] and one[1] != other[1]
    more = digests(folder(tmp_path / "more", 0, test_images=3))
    assert more[0] == one[0] and more[1] != one[1]
    (tmp_path / "moved" / "val" / "dog").rename(tmp_path / "away")
    (tmp_path / "moved" / "val" / "cat").rename(tmp_path / "moved" / "val" / "dog")
    (tmp_path / "away").rename(tmp_path / "moved" / "val" / "cat")
    assert digests(tmp_path / "moved")[1] != one[1]


def test_an_image_that_cannot_be_read_is_no_hindrance(tmp_path: Path) -> None:
    data = StreamData(load_dataset("folder", folder(tmp_path / "one", 0)), "cpu", 16)
    whole = data.digest("test")
    (tmp_path / "one" / "val" / "cat" / "0.png").unlink()
    assert data.digest("test") != whole


def test_images_in_memory() -> None:
    made = make_shapes(2, 2)
    data = ResidentData(made, "cpu")
    assert data.digest("test") == ResidentData(make_shapes(2, 2), "cpu").digest("test")
    assert data.digest("test") != data.digest("train")
    few = ResidentData(made, "cpu", train_indices=torch.arange(5))
    assert few.digest("train") != data.digest("train") and few.digest("test") == data.digest("test")
    for change in ({"test_images": 255 - made.test_images}, {"test_labels": made.test_labels.flip(0)}):
        changed = ResidentData(dataclasses.replace(made, **change), "cpu")
        assert changed.digest("test") != data.digest("test")
        assert changed.digest("train") == data.digest("train")
    with pytest.raises(UserError, match="no 'val' split"):
        data.digest("val")


def test_many_images_are_sampled_and_all_labels_count() -> None:
    rows = sampled(1_281_167)
    assert len(rows) == len(rows.unique()) == SAMPLED and rows[0] == 0 and rows[-1] > 1_270_000
    assert sampled(3).tolist() == [0, 1, 2] and sampled(0).tolist() == []
    labels = torch.zeros(1000, dtype=torch.int64)
    assert digest(labels, []) != digest(labels.index_fill(0, torch.tensor([7]), 1), [])
