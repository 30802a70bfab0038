"""ImageNet's archives, in miniature: unpacked class by class, taken up again, refused where they're wrong."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from miniatures import CLASSES, as_tar, imagenet_files, imagenet_info, write_files, write_imagenet
from tutelage.data import download, imagenet_preparation
from tutelage.data.folders import scan_folders
from tutelage.data.imagenet_preparation import ARCHIVES, META, TRUTH, prepare_imagenet
from tutelage.errors import TutelageError, UserError

Files = dict[str, dict[str, bytes]]
TOP = "ILSVRC2012_devkit_t12"


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "archives"


def prepare(source: Path, target: Path, files: Files | None = None, **options: Any) -> dict[str, Any]:
    archives = write_imagenet(source, files or imagenet_files())
    return prepare_imagenet(source, target, imagenet_info(), archives, **options)


def test_images_come_into_their_classes_folders(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "made" / "imagenet"
    result = prepare(source, target)
    assert result == {
        "dataset": "imagenet",
        "folder": str(target),
        "classes": 3,
        "train_images": 12,
        "val_images": 6,
        "already": False,
    }
    assert [path.name for path in target.parent.iterdir()] == ["imagenet"]
    found = scan_folders(imagenet_info(), target)
    assert found.info.class_names == CLASSES
    from PIL import Image

    for split, shade in ((found.train, 0), (found.test, 5)):
        for row in range(len(split)):
            with split.open(row) as file, Image.open(file) as image:
                level = image.getpixel((3, 3))
            assert isinstance(level, tuple)
            assert abs(level[0] - 60 * int(split.labels[row]) - shade) < 6, split.name(row)
    assert prepare(source, target) == {**result, "already": True}


def test_official_files_are_what_torchvision_expects() -> None:
    from torchvision.datasets.imagenet import ARCHIVE_META

    for part in ("train", "val", "devkit"):
        file = getattr(ARCHIVES, part)
        assert (file.name, file.md5) == ARCHIVE_META[part]


def test_torchvision_reads_the_same_from_the_devkit(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import imagenet as theirs

    archives = write_imagenet(source, imagenet_files())
    ours = imagenet_preparation.read_devkit(source / archives.devkit.name, imagenet_info())
    monkeypatch.setattr(theirs, "_verify_archive", lambda *_: None)
    theirs.parse_devkit_archive(str(source))
    names, wnids = theirs.load_meta_file(str(source))
    assert set(names) == ours.wnids and tuple(wnids) == ours.val_wnids


class Interrupt(BaseException):
    """What a kill is to the code."""


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), Interrupt()])
def test_a_second_attempt_goes_on_behind_the_last_whole_class(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    target, written = tmp_path / "made" / "imagenet", []
    staging = target.parent / "imagenet.preparing"

    def save(content: Any, path: Path) -> None:
        if len(written) == 6:  # in the second class
            raise failure
        written.append(path.name)
        plain(content, path)

    plain = imagenet_preparation.save
    monkeypatch.setattr(imagenet_preparation, "save", save)
    expected = TutelageError if isinstance(failure, OSError) else Interrupt
    with pytest.raises(expected) as caught:
        prepare(source, target)
    if isinstance(failure, OSError):
        assert "No space left on device" in str(caught.value) and f"kept in {staging}" in str(caught.value)
        assert getattr(caught.value, "exit_code", None) == 1
    assert not target.exists()
    done = {path.name for path in (staging / "train").iterdir()}
    assert done == {CLASSES[0]} and len(listing(staging / "train")) == 4
    written.clear()
    written.extend(["?"] * 7)
    checked: list[Path] = []
    monkeypatch.setattr(imagenet_preparation, "md5_of", checked.append)
    prepare_again = prepare_imagenet(source, target, imagenet_info(), write_imagenet_facts(source))
    assert prepare_again["train_images"] == 12 and checked == []
    assert not staging.exists()
    assert CLASSES[0] not in {name.split("_")[0] for name in written}


def write_imagenet_facts(source: Path) -> Any:
    """What the archives that are there are; they aren't written again, as that would change their times."""
    files = {
        part: replace(getattr(ARCHIVES, part), size=(source / getattr(ARCHIVES, part).name).stat().st_size)
        for part in ("train", "val", "devkit")
    }
    return imagenet_preparation.ImageNetArchives(**files)


def changed(part: str, change: Any) -> Files:
    files = imagenet_files()
    return {**files, part: change(files[part])}


def replaced(name: str, content: bytes) -> Any:
    return lambda files: {**files, name: content}


def dropped(name: str) -> Any:
    return lambda files: {key: value for key, value in files.items() if key != name}


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (changed("train", dropped(f"{CLASSES[1]}.tar")), f"class '{CLASSES[1]}' is missing in .*train.tar"),
        (changed("train", replaced("n99999999.tar", as_tar({}))), "class 'n99999999' should not be in"),
        (
            changed("train", replaced(f"{CLASSES[0]}.tar", as_tar({}))),
            rf"train.tar:{CLASSES[0]}.tar has no im",
        ),
        (changed("train", replaced(f"{CLASSES[0]}.tar", b"no tar" * 200)), "train.tar is damaged"),
        (
            changed("train", replaced(f"{CLASSES[0]}.tar", as_tar({"../../outside.JPEG": b"?"}))),
            "outside its folder",
        ),
        (
            changed("train", replaced(f"{CLASSES[0]}.tar", as_tar({"run.sh": b"?"}))),
            "'run.sh', which is no im",
        ),
        (changed("val", dropped("ILSVRC2012_val_00000002.JPEG")), "val.tar has 5 images instead of 6"),
        (
            changed("val", replaced("ILSVRC2012_val_00000007.JPEG", b"?")),
            "'ILSVRC2012_val_00000007.JPEG', which is none of the 6 validation images",
        ),
        (changed("devkit", dropped(f"{TOP}/{META}")), rf"holds no {META}, so it is not the development kit"),
        (changed("devkit", dropped(f"{TOP}/{TRUTH}")), f"holds no {TRUTH}"),
        (changed("devkit", replaced(f"{TOP}/{META}", b"no table")), "is not the table of ImageNet's classes"),
        (changed("devkit", replaced(f"{TOP}/{TRUTH}", b"1\n4\n")), "has a line that is no class number"),
        (changed("devkit", replaced("../outside", b"?")), "outside its folder"),
    ],
)
def test_wrong_archives_are_refused_and_nothing_half_made_is_left(
    tmp_path: Path, source: Path, files: Files, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        prepare(source, tmp_path / "imagenet", files, checksums=False)
    left = listing(tmp_path / "imagenet.preparing")
    assert not (tmp_path / "imagenet").exists() and not (tmp_path / "outside").exists()
    kept = {name for name in left if name.startswith("train/n") and name.count("/") == 2}
    assert kept == left and len(left) % 4 == 0
    assert ("kept in" in str(caught.value)) == bool(left)


def test_other_classes_are_refused(tmp_path: Path, source: Path) -> None:
    archives = write_imagenet(source, imagenet_files())
    other = replace(imagenet_info(), class_names=(*CLASSES[:2], "n00000001"))
    with pytest.raises(UserError, match=r"classes in .*devkit.* are not imagenet's \(2 differ"):
        prepare_imagenet(source, tmp_path / "imagenet", other, archives)


def test_checksums(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "imagenet"
    write_imagenet(source, imagenet_files())
    with pytest.raises(UserError, match=r"is not whole: it has \d+ bytes instead of 2568145"):
        prepare_imagenet(source, target, imagenet_info())
    archives = write_imagenet(source, imagenet_files())
    wrong = replace(archives, val=replace(archives.val, md5="0" * 32))
    with pytest.raises(
        UserError, match=r"val\.tar is not the official file or is damaged: its MD5 is not 0000"
    ):
        prepare_imagenet(source, target, imagenet_info(), wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["archives"]
    (source / archives.val.name).unlink()
    with pytest.raises(
        UserError, match=r"img_val\.tar is missing; ImageNet has to be fetched from image-net"
    ):
        prepare_imagenet(source, target, imagenet_info(), archives)


def test_what_was_checked_is_noted_with_the_file_it_was(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = write_imagenet(source, imagenet_files())
    staging = tmp_path / "imagenet.preparing"
    state = (source / archives.train.name).stat()
    right = {archives.train.name: [state.st_size, state.st_mtime_ns], archives.val.name: [1, 2]}
    write_files(staging, {"checked.json": json.dumps(right).encode(), f"train/{CLASSES[0]}/a.JPEG": b"kept"})
    checked: list[str] = []

    def md5_of(path: Path) -> str:
        checked.append(path.name)
        return download.md5_of(path)

    monkeypatch.setattr(imagenet_preparation, "md5_of", md5_of)
    prepare_imagenet(source, tmp_path / "imagenet", imagenet_info(), archives)
    assert checked == [archives.devkit.name, archives.val.name]
    assert (tmp_path / "imagenet" / "train" / CLASSES[0] / "a.JPEG").read_bytes() == b"kept"
    assert not (tmp_path / "imagenet" / "checked.json").exists()


def test_a_disk_without_room_is_refused_first(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage())
    with pytest.raises(UserError, match=r"the rest of ImageNet's training images needs 0\.\d+ GB"):
        prepare(source, tmp_path / "imagenet")
    assert [path.name for path in tmp_path.iterdir()] == ["archives"]
