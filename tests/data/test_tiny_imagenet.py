"""TinyImageNet: prepared from a zip or a folder, read from what comes out, refused where it isn't whole."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from miniatures import CLASSES, TRAIN, VAL, jpeg, tiny_files, tiny_info, write_files, write_zip
from tutelage.data import dataset_info, tiny_imagenet_preparation
from tutelage.data.download import RemoteFile
from tutelage.data.tiny_imagenet import ARCHIVE, load_tiny_imagenet
from tutelage.data.tiny_imagenet_preparation import prepare_tiny_imagenet
from tutelage.errors import TutelageError, UserError
from web import serving

NOWHERE = RemoteFile("http://127.0.0.1:9/tiny.zip", "0" * 32)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected() -> dict[str, bytes]:
    files = tiny_files()
    goal = {name: files[name] for name in ("wnids.txt", "words.txt")}
    goal |= {name: raw for name, raw in files.items() if name.startswith("train/") and name.endswith("JPEG")}
    for line in files["val/val_annotations.txt"].decode().splitlines():
        name, wnid = line.split("\t")[:2]
        goal[f"val/{wnid}/{name}"] = files[f"val/images/{name}"]
    return goal


@pytest.fixture(params=["zip", "folder", "above"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    place = tmp_path / "original"
    if request.param == "zip":
        place.mkdir()
        return write_zip(place / "tiny.zip", tiny_files())
    inner = place / "tiny-imagenet-200" if request.param == "above" else place
    write_files(inner, tiny_files())
    return place


def test_prepared_folders_have_all_images_and_the_original_is_as_it_was(tmp_path: Path, source: Path) -> None:
    before = listing(tmp_path / "original")
    target = tmp_path / "made" / "tiny"
    result = prepare_tiny_imagenet(source, target, tiny_info())
    assert listing(target) == expected()
    assert listing(tmp_path / "original") == before
    assert sorted(path.name for path in target.parent.iterdir()) == ["tiny"]
    assert (result["train_images"], result["val_images"], result["already"]) == (12, 6, False)
    again = prepare_tiny_imagenet(source, target, tiny_info())
    assert again == {**result, "already": True}


def test_other_disks_get_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_files(tmp_path / "original", tiny_files())
    linked = prepare_tiny_imagenet(source, tmp_path / "linked", tiny_info())["folder"]
    assert os.path.samefile(source / "wnids.txt", Path(linked) / "wnids.txt")

    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    copied = prepare_tiny_imagenet(source, tmp_path / "copied", tiny_info())["folder"]
    assert not os.path.samefile(source / "wnids.txt", Path(copied) / "wnids.txt")
    assert listing(Path(copied)) == listing(Path(linked))


def test_a_full_disk_leaves_nothing_and_the_next_attempt_succeeds(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, count = tmp_path / "made" / "tiny", 0

    def fail_later(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 7:
            raise OSError(errno.ENOSPC, "No space left on device", "some.JPEG")
        plain(*arguments)

    name = "save" if source.suffix == ".zip" else "copyfile"
    place: Any = tiny_imagenet_preparation if name == "save" else shutil
    plain = getattr(place, name)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail_later)
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
        with pytest.raises(TutelageError, match=r"can't make .*tiny: No space left on device") as caught:
            prepare_tiny_imagenet(source, target, tiny_info())
    assert caught.value.exit_code == 1 and "nothing of it was left" in str(caught.value)
    assert list(target.parent.iterdir()) == []
    prepare_tiny_imagenet(source, target, tiny_info())
    assert listing(target) == expected()


def test_what_a_killed_attempt_left_is_replaced(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "tiny.zip", tiny_files())
    write_files(tmp_path / ".tiny.making", {"train/half": b"?"})
    prepare_tiny_imagenet(source, tmp_path / "tiny", tiny_info())
    assert listing(tmp_path / "tiny") == expected()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny.zip"]


def without(*gone: str) -> dict[str, bytes]:
    return {name: raw for name, raw in tiny_files().items() if not any(part in name for part in gone)}


def annotated(change: Any) -> dict[str, bytes]:
    files = tiny_files()
    return {**files, "val/val_annotations.txt": change(files["val/val_annotations.txt"])}


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (without(f"train/{CLASSES[1]}"), f"no images of class '{CLASSES[1]}' in 'train'"),
        (without(f"{CLASSES[1]}_2.JPEG"), "has 11 images in 'train' instead of 12"),
        (without("val_annotations"), r"(has|holds) no val/val_annotations\.txt"),
        (without("images/val_3"), "names val/images/val_3.JPEG, which is not there"),
        (annotated(lambda raw: raw.replace(f"val_3.JPEG\t{CLASSES[0]}".encode(), b"x\ty")), "line 2 of"),
        (annotated(lambda raw: raw + b"../x.JPEG\t" + CLASSES[0].encode()), "line 7 of val/"),
        (
            annotated(lambda raw: b"".join(raw.splitlines(keepends=True)[:4])),
            f"no images of class '{CLASSES[2]}' in 'val'",
        ),
        (
            {**tiny_files(), "train/n99999999/images/a.JPEG": b"?"},
            "'n99999999' in .* is no class of tiny-imagenet",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_originals_that_are_not_whole_are_refused(
    tmp_path: Path, kind: str, files: dict[str, bytes], sentence: str
) -> None:
    source = tmp_path / "original"
    if kind == "zip":
        source = write_zip(tmp_path / "tiny.zip", files)
    else:
        write_files(source, files)
    with pytest.raises(UserError, match=sentence):
        prepare_tiny_imagenet(source, tmp_path / "made", tiny_info())
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob(".*"))


def test_damaged_and_hostile_archives_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "tiny.zip", tiny_files())
    raw = path.read_bytes()
    with pytest.raises(UserError, match=r"tiny\.zip is not tiny-imagenet's official archive or is damaged"):
        prepare_tiny_imagenet(path, tmp_path / "made", tiny_info(), ARCHIVE.md5)
    prepare_tiny_imagenet(path, tmp_path / "right", tiny_info(), hashlib.md5(raw).hexdigest())
    place = raw.index(jpeg(80)) + 300
    path.write_bytes(raw[:place] + bytes([raw[place] ^ 255]) + raw[place + 1 :])
    with pytest.raises(UserError, match=r"tiny\.zip is damaged or no such archive \(Bad CRC-32"):
        prepare_tiny_imagenet(path, tmp_path / "made", tiny_info())
    path.write_bytes(raw[:500])
    with pytest.raises(UserError, match=r"tiny\.zip is damaged"):
        prepare_tiny_imagenet(path, tmp_path / "made", tiny_info())
    write_zip(path, {**tiny_files(), "../../outside.JPEG": b"?"})
    with pytest.raises(UserError, match="outside its folder"):
        prepare_tiny_imagenet(path, tmp_path / "made", tiny_info())
    with pytest.raises(UserError, match=r"there is no .*nothing\.zip"):
        prepare_tiny_imagenet(tmp_path / "nothing.zip", tmp_path / "made", tiny_info())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["right", "tiny.zip"]


def test_a_target_with_something_else_is_left_alone(tmp_path: Path) -> None:
    source = write_files(tmp_path / "original", tiny_files())
    other = write_files(tmp_path / "made", {"train/mine": b"x"})
    with pytest.raises(UserError, match=r"exists already, but is no prepared tiny-imagenet"):
        prepare_tiny_imagenet(source, other, tiny_info())
    assert listing(other) == {"train/mine": b"x"}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    source = write_zip(tmp_path / "tiny.zip", tiny_files())
    return Path(prepare_tiny_imagenet(source, tmp_path / "data" / "tiny-imagenet", tiny_info())["folder"])


@pytest.mark.parametrize("inside", [True, False])
def test_images_are_read_into_memory(prepared: Path, inside: bool) -> None:
    data = load_tiny_imagenet(tiny_info(), NOWHERE, prepared if inside else prepared.parent, False)
    assert data.train_images.shape == (TRAIN * 3, 3, 64, 64)
    assert data.test_images.shape == (VAL * 3, 3, 64, 64)
    assert data.train_labels.tolist() == [label for label in range(3) for _ in range(TRAIN)]
    shade = data.test_images[:, 0, 30, 30].int()
    drawn = torch.tensor([80 * label + 10 * number for label in range(3) for number in range(VAL)])
    assert (shade - drawn).abs().max() < 3
    grey = data.train_images[1, :, 30, 30]
    assert len(grey.unique()) == 1
    assert data.train_images.is_contiguous(memory_format=torch.channels_last)


def test_folders_of_the_research_code_are_read(tmp_path: Path, prepared: Path) -> None:
    place = tmp_path / "theirs" / "TinyImageNet200"
    shutil.copytree(prepared, place)
    write_files(place, {"val_original/images/val_0.JPEG": b"x", "test/images/test_0.JPEG": b"x"})
    data = load_tiny_imagenet(tiny_info(), NOWHERE, place.parent, False)
    assert len(data.test_labels) == VAL * 3


def test_folders_that_are_not_whole_are_refused(tmp_path: Path, prepared: Path) -> None:
    def load(folder: Path = prepared) -> None:
        load_tiny_imagenet(tiny_info(), NOWHERE, folder, False)

    image = prepared / "train" / CLASSES[0] / "images" / f"{CLASSES[0]}_0.JPEG"
    image.unlink()
    image.write_bytes(b"no picture")
    with pytest.raises(UserError, match=rf"1 of 12 image files are no readable images .*{image.name}"):
        load()
    image.write_bytes(jpeg(0, 65))
    with pytest.raises(UserError, match=r"_0\.JPEG \(it has 65x65 pixels\)"):
        load()
    image.unlink()
    with pytest.raises(UserError, match=r"train has 11 images instead of 12; prepare tiny-imagenet anew"):
        load()
    shutil.rmtree(prepared / "val" / CLASSES[2])
    with pytest.raises(UserError, match=rf"class '{CLASSES[2]}' has no folder"):
        load()
    shutil.rmtree(prepared / "train" / CLASSES[2])
    with pytest.raises(UserError, match=rf"class folder '{CLASSES[2]}' is missing \(2 of 3 classes\)"):
        load()
    with pytest.raises(UserError, match=r"no tiny-imagenet found: .*tutelage data prepare tiny-imagenet"):
        load(tmp_path / "empty")
    original = write_files(tmp_path / "raw" / "tiny-imagenet-200", tiny_files())
    with pytest.raises(UserError, match=r"not in class folders yet; run 'tutelage data prepare"):
        load(original.parent)
    with pytest.raises(UserError, match=r"needs its folders: .*--data-dir"):
        load_tiny_imagenet(tiny_info(), NOWHERE, None, False)


def test_download_prepares_once(tmp_path: Path) -> None:
    raw = write_zip(tmp_path / "tiny.zip", tiny_files()).read_bytes()
    with serving({"/tiny.zip": raw}) as site:
        archive = RemoteFile(f"{site.url}/tiny.zip", hashlib.md5(raw).hexdigest())
        for _ in range(2):
            data = load_tiny_imagenet(tiny_info(), archive, tmp_path / "data", True)
        assert site.asked == [""]
    assert len(data.train_labels) == TRAIN * 3
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["tiny-imagenet"]


def test_the_facts() -> None:
    info = dataset_info("tiny-imagenet")
    assert (info.num_classes, info.train_count, info.test_count, info.image_size) == (200, 100000, 10000, 64)
    assert list(info.class_names) == sorted(set(info.class_names))
    assert set(info.class_names) < set(dataset_info("imagenet").class_names)
    assert replace(tiny_info(), class_names=info.class_names).num_classes == 200
