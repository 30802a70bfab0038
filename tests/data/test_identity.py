"""What tells training images from others: their content, wherever they are stored."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch

from packing import images_of, write_shards
from toys import CLASSES, draw_folders, draw_image
from tutelage.data import ResidentData, StreamData, load_dataset, make_shapes


def as_folder(files: Path, to: Path) -> tuple[str, Path]:
    files.rename(to)
    return "folder", to


def as_shards(files: Path, to: Path) -> tuple[str, Path]:
    return "wds", write_shards(files, to)


def as_table(files: Path, to: Path) -> tuple[str, Path]:
    types = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    parts = {}
    for split in ("train", "val"):
        found = images_of(files / split)
        rows = {
            "image": [{"bytes": path.read_bytes(), "path": None} for _, path in found],
            "label": [number for number, _ in found],
        }
        parts[split] = datasets.Dataset.from_dict(rows, features=datasets.Features(types))
    datasets.disable_progress_bars()
    datasets.DatasetDict(parts).save_to_disk(str(to))
    return f"hfds/{to}", to


@pytest.mark.parametrize("store", [as_folder, as_shards, as_table])
def test_images_in_files_are_told_by_content(
    store: Callable[[Path, Path], tuple[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")

    def identity(where: str, change: bool = False, **options: object) -> object:
        files = draw_folders(tmp_path / where / "files")
        if change:
            draw_image(files / "train" / CLASSES[1] / "1.png", 7, (49, 40))
        name, folder = store(files, tmp_path / where / "stored")
        return StreamData(load_dataset(name, folder), "cpu", 8, **options).identity()  # type: ignore[arg-type]

    first = identity("a")
    if store is not as_table:  # tables have a fingerprint, which is another for each that is made
        assert identity("b") == first
    assert identity("c", change=True) != first
    assert identity("d", train_indices=torch.arange(14)) != first
    assert identity("e", augment=False) != first


def test_files_of_equal_names_and_sizes_are_told_by_content(tmp_path: Path) -> None:
    def identity(where: str, shift: int) -> object:
        files = draw_folders(tmp_path / where)
        for path in sorted((files / "train").rglob("*.*")):
            path.write_bytes(bytes((byte + shift) % 256 for byte in path.read_bytes()))
        return StreamData(load_dataset("folder", files), "cpu", 8).identity()

    assert identity("a", 0) == identity("b", 0) != identity("c", 1)


def test_a_file_that_is_gone_is_another_one(tmp_path: Path) -> None:
    files = draw_folders(tmp_path / "files")
    data = StreamData(load_dataset("folder", files), "cpu", 8)
    before = data.identity()
    os.unlink(files / "train" / CLASSES[0] / "0.JPEG")
    assert data.identity() != before


def test_images_in_memory_are_told_by_content() -> None:
    one, other = (make_shapes(train_per_class=count, test_per_class=1) for count in (2, 3))
    assert ResidentData(one, "cpu").identity() == ResidentData(one, "cpu").identity()
    assert ResidentData(one, "cpu").identity() != ResidentData(other, "cpu").identity()
