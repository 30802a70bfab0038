"""Canonical CIFAR folders: read right, and refused with a sentence where anything is wrong."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.data import DatasetInfo, dataset_info, download, load_dataset
from tutelage.data.cifar import CIFAR10_LAYOUT, CIFAR100_LAYOUT, CifarLayout, load_cifar
from tutelage.data.official import OfficialFile
from tutelage.data.safe_pickle import read_pickle
from tutelage.errors import TutelageError, UserError
from web import serving

LAYOUTS = {"cifar10": CIFAR10_LAYOUT, "cifar100": CIFAR100_LAYOUT}
DTYPE = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"


def array_opcodes(pixels: np.ndarray, dtype: bytes = DTYPE) -> bytes:
    """A uint8 matrix as Python 2 and the NumPy of 2009 pickled it (the opcodes of the official files)."""
    shape = b"".join(b"J" + struct.pack("<i", side) for side in pixels.shape)
    fortran = not pixels.flags.c_contiguous
    raw = pixels.tobytes(order="F" if fortran else "C")
    content = b"T" + struct.pack("<i", len(raw)) + raw
    return (
        RECONSTRUCT
        + b"(K\x01"
        + shape
        + b"\x86"
        + dtype
        + (b"\x88" if fortran else b"\x89")
        + content
        + b"tb"
    )


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def cifar_pickle(pixels: np.ndarray, labels: list[int], label_key: bytes) -> bytes:
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    filenames = b"](" + b"".join(text(b"a_s_000001.png") for _ in labels) + b"e"
    return (
        b"\x80\x02}(" + text(b"filenames") + filenames + text(label_key) + b"](" + numbers + b"e"
        + text(b"data") + array_opcodes(pixels) + b"u."
    )  # fmt: skip


def write_canonical(
    root: Path, layout: CifarLayout
) -> tuple[CifarLayout, dict[str, tuple[np.ndarray, list[int]]]]:
    """A tiny folder of the official shape: its layout with sizes and MD5 sums, and what each file holds."""
    folder = root / layout.folder
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    held: dict[str, tuple[np.ndarray, list[int]]] = {}

    def write(file: OfficialFile, raw: bytes) -> OfficialFile:
        (folder / file.name).write_bytes(raw)
        return OfficialFile(file.name, len(raw), hashlib.md5(raw, usedforsecurity=False).hexdigest())

    def write_images(file: OfficialFile) -> OfficialFile:
        pixels = random.randint(0, 256, (4, 3072)).astype(np.uint8)
        labels = random.randint(0, 10, 4).tolist()
        held[file.name] = (pixels, labels)
        return write(file, cifar_pickle(pixels, labels, layout.label_key))

    train = tuple(write_images(file) for file in layout.train)
    test, meta = write_images(layout.test), write(layout.meta, b"\x80\x02}.")
    return replace(layout, train=train, test=test, meta=meta), held


def seal(layout: CifarLayout, folder: Path, raw: bytes) -> CifarLayout:
    """Put `raw` in the place of the test file, with a layout that takes it for the official one."""
    (folder / layout.test.name).write_bytes(raw)
    return replace(
        layout,
        test=OfficialFile(layout.test.name, len(raw), hashlib.md5(raw, usedforsecurity=False).hexdigest()),
    )


@pytest.fixture
def info() -> DatasetInfo:
    return dataset_info("cifar100")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("inside", [True, False])
def test_reads_images_and_labels_in_order(tmp_path: Path, name: str, inside: bool) -> None:
    layout, held = write_canonical(tmp_path, LAYOUTS[name])
    data = load_cifar(dataset_info(name), layout, tmp_path / layout.folder if inside else tmp_path, False)
    pixels = np.concatenate([held[file.name][0] for file in layout.train])
    assert np.array_equal(data.train_images.numpy(), pixels.reshape(-1, 3, 32, 32))
    assert data.train_labels.tolist() == [label for file in layout.train for label in held[file.name][1]]
    assert np.array_equal(data.test_images.numpy(), held[layout.test.name][0].reshape(-1, 3, 32, 32))
    assert data.test_labels.tolist() == held[layout.test.name][1]
    data.train_images[0] = 0  # writable, unlike the pickle's own bytes


def test_official_files_are_what_torchvision_expects() -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    for layout, theirs in ((CIFAR10_LAYOUT, CIFAR10), (CIFAR100_LAYOUT, CIFAR100)):
        assert [[file.name, file.md5] for file in layout.train] == theirs.train_list
        assert [[layout.test.name, layout.test.md5]] == theirs.test_list
        assert (layout.meta.name, layout.meta.md5) == (theirs.meta["filename"], theirs.meta["md5"])
        assert (layout.folder, layout.archive_md5) == (theirs.base_folder, theirs.tgz_md5)


def test_no_folder_given() -> None:
    with pytest.raises(UserError, match=r"cifar100 needs its files.*--data-dir.*--download"):
        load_dataset("cifar100")


@pytest.mark.parametrize("made", [True, False])
def test_empty_or_missing_folder(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "nowhere"
    if made:
        folder.mkdir()
    with pytest.raises(
        UserError, match=r"nowhere (has|does not exist, so it has) neither cifar-10-batches-py/"
    ) as error:
        load_dataset("cifar10", folder)
    assert "--data-dir" in str(error.value) and "--download" in str(error.value)


def test_missing_file(tmp_path: Path, info: DatasetInfo) -> None:
    layout, _ = write_canonical(tmp_path, CIFAR100_LAYOUT)
    (tmp_path / layout.folder / "test").unlink()
    with pytest.raises(UserError, match="cifar-100-python/test is missing"):
        load_cifar(info, layout, tmp_path, False)


def test_truncated_file(tmp_path: Path, info: DatasetInfo) -> None:
    layout, _ = write_canonical(tmp_path, CIFAR100_LAYOUT)
    path = tmp_path / layout.folder / "train"
    os.truncate(path, layout.train[0].size - 100)
    sentence = f"cifar-100-python/train is truncated: it has {layout.train[0].size - 100} bytes instead of"
    with pytest.raises(UserError, match=sentence):
        load_cifar(info, layout, tmp_path, False)


@pytest.mark.parametrize("name", ["meta", "train", "test"])
def test_flipped_bit(tmp_path: Path, info: DatasetInfo, name: str) -> None:
    layout, _ = write_canonical(tmp_path, CIFAR100_LAYOUT)
    path = tmp_path / layout.folder / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=f"cifar-100-python/{name} is corrupt: its MD5 is not the official"):
        load_cifar(info, layout, tmp_path, False)


def test_unreadable_file(tmp_path: Path, info: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, _ = write_canonical(tmp_path, CIFAR100_LAYOUT)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"can't read .*cifar-100-python/meta: Permission denied"):
        load_cifar(info, layout, tmp_path, False)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (cifar_pickle(np.zeros((2, 12), np.uint8), [0, 1], b"fine_labels"), "no pixel rows of 3072 bytes"),
        (cifar_pickle(np.zeros((2, 3072), np.uint8), [0, 1], b"other_labels"), "no list of fine_labels"),
        (
            cifar_pickle(np.zeros((2, 3072), np.uint8), [0], b"fine_labels"),
            "one int64 label for each of its 2",
        ),
        (
            cifar_pickle(np.zeros((1, 3072), np.uint8), [200], b"fine_labels"),
            "labels 200..200, but the classes",
        ),
        (b"\x80\x02](K\x01e.", "holds a list, not a dict"),
        (b"", "is not a CIFAR file"),
        (b"not a pickle", "is not a CIFAR file"),
    ],
)
def test_other_content(tmp_path: Path, info: DatasetInfo, raw: bytes, sentence: str) -> None:
    layout, _ = write_canonical(tmp_path, CIFAR100_LAYOUT)
    layout = seal(layout, tmp_path / layout.folder, raw)
    with pytest.raises(UserError, match=sentence):
        load_cifar(info, layout, tmp_path, False)


def attacks(trace: Path) -> dict[str, bytes]:
    """Pickles that make the file `trace` when read by an ordinary unpickler."""
    command = f"touch {trace}".encode()
    argument = text(command) + b"\x85"
    opening = text(f"open({str(trace)!r}, 'w')".encode())
    os_system = f"{os.name}\nsystem\n".encode()
    return {
        "reduce": b"\x80\x02c" + os_system + argument + b"R.",
        "inst": b"(" + text(command) + b"i" + os_system + b".",
        "obj": b"\x80\x02(c" + os_system + text(command) + b"o.",
        "stack global": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93" + argument + b"R.",
        "inside a cifar dict": b"\x80\x02}(" + text(b"data") + b"c" + os_system + argument + b"Ru.",
        "builtins eval": b"\x80\x02cbuiltins\neval\n" + opening + b"\x85R.",
        "numpy's own exec": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n" + opening + b"}\x86R.",
    }  # fmt: skip


@pytest.mark.parametrize("name", list(attacks(Path("trace"))))
def test_hostile_pickle_executes_nothing(tmp_path: Path, info: DatasetInfo, name: str) -> None:
    trace = tmp_path / "trace"
    layout, _ = write_canonical(tmp_path, CIFAR100_LAYOUT)
    raw = attacks(trace)[name]
    (tmp_path / layout.folder / "test").write_bytes(raw)
    with pytest.raises(UserError, match=r"cifar-100-python/test is (truncated|corrupt)"):
        load_cifar(info, layout, tmp_path, False)
    sealed = seal(layout, tmp_path / layout.folder, raw)
    with pytest.raises(
        UserError, match=r"test is not a CIFAR file \(it asks for .*nothing in it was executed"
    ):
        load_cifar(info, sealed, tmp_path, False)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"\x80\x02}(" + text(b"x") + RECONSTRUCT + b"u.", "array"),
        (b"\x80\x02}(" + text(b"x") + RECONSTRUCT + b"}bu.", "not of unsigned bytes"),
        (
            b"\x80\x02}("
            + text(b"x")
            + array_opcodes(np.zeros((1, 2), np.uint8), b"cnumpy\ndtype\nU\x01OK\x00K\x01\x87R")
            + b"u.",
            "not of unsigned bytes",
        ),
        (b"\x80\x02cnumpy\nndarray\nK\x04\x85R.", "not callable"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "state of something that has none"),
        (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}" + text(b"__class__") + b"K\x01sb.",
            "state of something",
        ),
        (b"\x80\x02cnumpy\nload\n.", "numpy.load"),
    ],
)
def test_misused_numpy_globals(raw: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_pickle(raw, "file")


def test_array_order_is_kept() -> None:
    matrix = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for pixels in (matrix, np.asfortranarray(matrix)):
        content = read_pickle(b"\x80\x02}(" + text(b"data") + array_opcodes(pixels) + b"u.", "file")
        assert np.array_equal(content[b"data"], matrix)


def packed(folder: Path) -> bytes:
    """A folder as the official archive has it, with a file that nobody needs."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        tar.add(folder, folder.name)
        tar.addfile(tarfile.TarInfo(f"{folder.name}/readme.html"))
    return raw.getvalue()


def test_download_fetches_only_what_is_not_sound(tmp_path: Path, info: DatasetInfo) -> None:
    layout, held = write_canonical(tmp_path / "official", CIFAR100_LAYOUT)
    archive = packed(tmp_path / "official" / layout.folder)
    with serving({"/cifar.tar.gz": archive}) as site:
        md5 = hashlib.md5(archive, usedforsecurity=False).hexdigest()
        layout = replace(layout, url=f"{site.url}/cifar.tar.gz", archive_md5=md5)
        mine = tmp_path / "mine"
        data = load_cifar(info, layout, mine, True)
        assert data.test_labels.tolist() == held["test"][1]
        assert sorted(path.name for path in mine.rglob("*")) == [layout.folder, "meta", "test", "train"]
        load_cifar(info, layout, mine, True)
        load_cifar(info, layout, mine / layout.folder, True)
        assert len(site.asked) == 1
        os.truncate(mine / layout.folder / "train", 10)
        again = load_cifar(info, layout, mine / layout.folder, True)
        assert torch.equal(again.train_images, data.train_images)
        assert len(site.asked) == 2


def test_a_hostile_archive_leaves_nothing(tmp_path: Path, info: DatasetInfo) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    with serving({"/cifar.tar.gz": raw.getvalue()}) as site:
        md5 = hashlib.md5(raw.getvalue(), usedforsecurity=False).hexdigest()
        layout = replace(CIFAR100_LAYOUT, url=f"{site.url}/cifar.tar.gz", archive_md5=md5)
        with pytest.raises(UserError, match="outside its folder; nothing of it was taken"):
            load_cifar(info, layout, tmp_path / "mine", True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cifar.tar.gz", "mine"]


def test_nothing_is_fetched_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", pytest.fail)
    with pytest.raises(UserError):
        load_dataset("cifar100", tmp_path)


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(TutelageError, match=r"can't download https://.* no route to host") as error:
        load_dataset("cifar100", tmp_path, download=True)
    assert error.value.exit_code == 1
