"""STL-10's binary files, in miniature."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.data import DatasetInfo, dataset_info, load_dataset
from tutelage.data.official import OfficialFile
from tutelage.data.stl10 import LAYOUT, Stl10Layout, load_stl10
from tutelage.errors import UserError

COUNTS = {"train": 7, "test": 3}


def write(folder: Path, name: str, raw: bytes) -> OfficialFile:
    (folder / name).write_bytes(raw)
    return OfficialFile(name, len(raw), hashlib.md5(raw, usedforsecurity=False).hexdigest())


def write_miniature(root: Path) -> tuple[Stl10Layout, dict[str, tuple[np.ndarray, list[int]]]]:
    """Random images: the layout that their files have, and `[n, 3, 96, 96]` and labels of each split."""
    folder = root / LAYOUT.folder
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    held, files = {}, {}
    for split, count in COUNTS.items():
        images = random.randint(0, 256, (count, 3, 96, 96)).astype(np.uint8)
        labels = random.randint(0, 10, count).tolist()
        held[split] = (images, labels)
        columns = images.transpose(0, 1, 3, 2).tobytes()
        files[split] = (
            write(folder, f"{split}_X.bin", columns),
            write(folder, f"{split}_y.bin", bytes(label + 1 for label in labels)),
        )
    return replace(LAYOUT, train=files["train"], test=files["test"]), held


@pytest.fixture
def info() -> DatasetInfo:
    return dataset_info("stl10")


@pytest.mark.parametrize("inside", [True, False])
def test_reads_images_upright_and_labels_from_zero(tmp_path: Path, info: DatasetInfo, inside: bool) -> None:
    layout, held = write_miniature(tmp_path)
    data = load_stl10(info, layout, tmp_path / layout.folder if inside else tmp_path, False)
    assert np.array_equal(data.train_images.numpy(), held["train"][0])
    assert np.array_equal(data.test_images.numpy(), held["test"][0])
    assert data.train_labels.tolist() == held["train"][1] and data.test_labels.tolist() == held["test"][1]
    assert data.train_images.is_contiguous()


def test_torchvision_reads_the_same(
    tmp_path: Path, info: DatasetInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import STL10

    layout, _ = write_miniature(tmp_path)
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    theirs = STL10(str(tmp_path), "train")
    data = load_stl10(info, layout, tmp_path, False)
    assert np.array_equal(theirs.data, data.train_images.numpy())
    assert theirs.labels.tolist() == data.train_labels.tolist()


def test_official_files_are_what_torchvision_expects(info: DatasetInfo) -> None:
    from torchvision.datasets import STL10

    assert [[file.name, file.md5] for file in LAYOUT.train] == STL10.train_list[:2]
    assert [[file.name, file.md5] for file in LAYOUT.test] == STL10.test_list
    assert (LAYOUT.folder, LAYOUT.archive.url, LAYOUT.archive.md5) == (
        STL10.base_folder,
        STL10.url,
        STL10.tgz_md5,
    )
    sizes = [file.size for file in LAYOUT.files]
    assert sizes == [5000 * 27648, 5000, 8000 * 27648, 8000]
    assert (info.num_classes, info.train_count, info.test_count) == (10, 5000, 8000)


def test_bad_files_end_in_a_sentence(tmp_path: Path, info: DatasetInfo) -> None:
    layout, held = write_miniature(tmp_path)
    folder = tmp_path / layout.folder
    raw = bytearray((folder / "test_X.bin").read_bytes())
    (folder / "test_X.bin").write_bytes(raw[:-5])
    with pytest.raises(UserError, match=r"test_X.bin is truncated: it has \d+ bytes instead of"):
        load_stl10(info, layout, tmp_path, False)
    raw[100] ^= 1
    (folder / "test_X.bin").write_bytes(raw)
    with pytest.raises(UserError, match=r"test_X.bin is corrupt: its MD5 is not the official"):
        load_stl10(info, layout, tmp_path, False)
    (folder / "test_X.bin").unlink()
    with pytest.raises(UserError, match=r"test_X.bin is missing"):
        load_stl10(info, layout, tmp_path, False)
    whole = write(folder, "test_X.bin", held["test"][0].tobytes())
    zero = write(folder, "train_y.bin", bytes(COUNTS["train"]))
    changed = replace(layout, train=(layout.train[0], zero), test=(whole, layout.test[1]))
    with pytest.raises(UserError, match=r"labels -1\.\.-1, but the classes are 0\.\.9"):
        load_stl10(info, changed, tmp_path, False)
    short = write(folder, "test_X.bin", bytes(100))
    with pytest.raises(UserError, match="100 bytes, which is not 27648 for each of the 3 labels"):
        load_stl10(info, replace(changed, test=(short, layout.test[1])), tmp_path, False)


def test_a_folder_without_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no stl10 found: .* has neither stl10_binary/ nor the files"):
        load_dataset("stl10", tmp_path)
    with pytest.raises(UserError, match=r"stl10 needs its files: .*--data-dir"):
        load_dataset("stl10")


def test_small_views_come_out_of_the_large_images(tmp_path: Path, info: DatasetInfo) -> None:
    from tutelage.data import ResidentData, ResizedViews

    layout, _ = write_miniature(tmp_path)
    data = ResidentData(
        load_stl10(info, layout, tmp_path, False), "cpu", augment=ResizedViews(96, 32, 1.0, "bilinear")
    )
    batch = next(data.train_batches(0, 0, 4))
    assert batch.images.shape == (4, 3, 32, 32) and torch.isfinite(batch.images).all()
