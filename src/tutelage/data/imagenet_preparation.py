"""ImageNet's official tar files turned into class folders; what is done is kept when the work is stopped."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from tutelage.data.archives import contents, first_line, reading, save, tar_files
from tutelage.data.catalog import DatasetInfo
from tutelage.data.download import check_room, md5_of
from tutelage.data.making import is_prepared, making
from tutelage.data.official import OfficialFile
from tutelage.data.progress import Advance, advancing
from tutelage.errors import TutelageError, UserError
from tutelage.files import sync_folder, write_json

CHECKED = "checked.json"
"""Which archives have been found right, in the folder that is being made."""
META = "data/meta.mat"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class ImageNetArchives:
    """The official files.

    Attributes:
        train: A tar of a tar for each class.
        val: A tar of images.
        devkit: Says which class each validation image shows.
    """

    train: OfficialFile
    val: OfficialFile
    devkit: OfficialFile

    @property
    def files(self) -> tuple[OfficialFile, ...]:
        """All three."""
        return (self.devkit, self.val, self.train)


ARCHIVES = ImageNetArchives(
    train=OfficialFile("ILSVRC2012_img_train.tar", 147897477120, "1d675b47d978889d74fa0da5fadfb00e"),
    val=OfficialFile("ILSVRC2012_img_val.tar", 6744924160, "29b22e2961454d5413ddabcf34fc5622"),
    devkit=OfficialFile("ILSVRC2012_devkit_t12.tar.gz", 2568145, "fa75699e90414af021442c21a62c3abf"),
)


@dataclass(frozen=True)
class Devkit:
    """What the development kit tells.

    Attributes:
        wnids: The classes.
        val_wnids: The class of each validation image, in the order of their numbers.
    """

    wnids: frozenset[str]
    val_wnids: tuple[str, ...]


def prepare_imagenet(
    source: Path,
    target: Path,
    info: DatasetInfo,
    archives: ImageNetArchives = ARCHIVES,
    checksums: bool = True,
) -> dict[str, Any]:
    """Make ``train/CLASS/*`` and ``val/CLASS/*`` out of the official tar files.

    The work goes on in ``TARGET.preparing`` beside ``target``, class by class; a class is there whole or not
    at all, and a second call goes on behind the last one. ``target`` appears when everything is done.

    Args:
        source: The folder with the three official files.
        target: The folder to make.
        info: Of the dataset; its classes are expected.
        archives: What the files must be.
        checksums: Whether sizes and MD5 sums must be the official ones; the training images' takes minutes.

    Returns:
        ``dataset``, ``folder``, ``classes``, ``train_images``, ``val_images`` and ``already``.

    Raises:
        UserError: A file is missing, wrong or damaged, the disk has no room, or ``target`` is something else.
        TutelageError: The disk got full or something can't be read; whole classes are kept.
    """
    if is_prepared(target, info):
        return {**_facts(target, info), "already": True}
    staging = target.parent / f"{target.name}.preparing"
    paths = {file.name: source / file.name for file in archives.files}
    for file in archives.files:
        _check_there(source, file, checksums)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        if checksums:
            _check_sums(archives.files, paths, staging)
        devkit = read_devkit(paths[archives.devkit.name], info)
        _unpack_train(paths[archives.train.name], staging / "train", devkit)
        _unpack_val(paths[archives.val.name], staging / "val", devkit)
        (staging / CHECKED).unlink(missing_ok=True)
        staging.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        named = f" ({error.filename})" if error.filename else ""
        raise TutelageError(
            f"can't prepare {target}: {error.strerror or error}{named}; see to it and run this again"
            f"{_kept(staging)}"
        ) from error
    except TutelageError as error:
        raise type(error)(f"{error}{_kept(staging)}") from error
    return {**_facts(target, info), "already": False}


def _kept(staging: Path) -> str:
    """What an attempt that failed has left: whole classes, or nothing."""
    if any((staging / "train").glob("[!.]*")) or (staging / "val").is_dir():
        return f"; what was done is kept in {staging}, and another attempt goes on from there"
    shutil.rmtree(staging, ignore_errors=True)
    return ""


def _facts(target: Path, info: DatasetInfo) -> dict[str, Any]:
    counts = {split: sum(1 for _ in (target / split).glob("*/*")) for split in ("train", "val")}
    return {
        "dataset": info.name,
        "folder": str(target),
        "classes": info.num_classes,
        "train_images": counts["train"],
        "val_images": counts["val"],
    }


def _check_there(source: Path, file: OfficialFile, checksums: bool) -> None:
    path = source / file.name
    if not path.is_file():
        raise UserError(
            f"{path} is missing; ImageNet has to be fetched from image-net.org after registration, put "
            f"{', '.join(known.name for known in ARCHIVES.files)} into one folder and name that"
        )
    size = path.stat().st_size
    if checksums and size != file.size:
        what = "not whole" if size < file.size else "another file"
        raise UserError(
            f"{path} is {what}: it has {size} bytes instead of {file.size}; fetch it anew, or add "
            "--no-checksums if it is meant to differ"
        )


def _check_sums(files: Iterable[OfficialFile], paths: Mapping[str, Path], staging: Path) -> None:
    """Check the MD5 sums of files that no earlier attempt has found right."""
    noted = staging / CHECKED
    try:
        right = dict(json.loads(noted.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        right = {}
    for file in files:
        path = paths[file.name]
        state = [path.stat().st_size, path.stat().st_mtime_ns]
        if right.get(file.name) == state:
            continue
        if md5_of(path) != file.md5:
            raise UserError(
                f"{path} is not the official file or is damaged: its MD5 is not {file.md5}; fetch it anew, "
                "or add --no-checksums if it is meant to differ"
            )
        right[file.name] = state
        write_json(noted, right)


def read_devkit(archive: Path, info: DatasetInfo) -> Devkit:
    """Read the classes and the validation images' labels; nothing is unpacked.

    Args:
        archive: The development kit of tasks 1 and 2.
        info: Of the dataset; its classes are expected.

    Raises:
        UserError: It is damaged, or not that kit.
    """
    found: dict[str, bytes] = {}
    with reading(archive), tarfile.open(archive) as tar:
        for path, member in tar_files(tar, archive):
            name = "/".join(path.parts[-2:])
            if name in (META, TRUTH):
                found[name] = contents(tar, member).read()
    missing = next((name for name in (META, TRUTH) if name not in found), None)
    if missing is not None:
        raise UserError(
            f"{archive} holds no {missing}, so it is not the development kit of tasks 1 and 2; fetch "
            f"{ARCHIVES.devkit.name}"
        )
    wnids = _leaves(found[META], archive)
    odd = sorted(set(wnids.values()) ^ set(info.class_names))
    if odd:
        raise UserError(
            f"the classes in {archive} are not {info.name}'s ({len(odd)} differ, '{odd[0]}' among them); "
            f"fetch the official {ARCHIVES.devkit.name}"
        )
    try:
        val = tuple(wnids[int(line)] for line in found[TRUTH].split())
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{TRUTH} in {archive} has a line that is no class number ({error}); fetch the official file"
        ) from error
    return Devkit(frozenset(wnids.values()), val)


def _leaves(raw: bytes, archive: Path) -> dict[int, str]:
    """Number -> WordNet id of the classes that have no others below them."""
    from scipy.io import loadmat

    try:
        table = np.atleast_1d(loadmat(BytesIO(raw), squeeze_me=True, variable_names=["synsets"])["synsets"])
        leaves = table[table["num_children"].astype(np.int64) == 0]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    except Exception as error:  # a foreign or damaged file can fail in any way
        reason = first_line(error)
        raise UserError(
            f"{META} in {archive} is not the table of ImageNet's classes ({reason}); fetch the official file"
        ) from error


def _unpack_train(archive: Path, goal: Path, devkit: Devkit) -> None:
    """Unpack the classes that aren't there yet, each whole or not at all."""
    with reading(archive), tarfile.open(archive) as outer:
        classes = {path.stem: member for path, member in tar_files(outer, archive) if path.suffix == ".tar"}
        odd = sorted(set(classes) ^ devkit.wnids)
        if odd:
            where = "is missing in" if odd[0] in devkit.wnids else "should not be in"
            raise UserError(
                f"class '{odd[0]}' {where} {archive} ({len(odd)} classes differ); fetch the official file"
            )
        left = {wnid: member for wnid, member in classes.items() if not (goal / wnid).is_dir()}
        goal.mkdir(exist_ok=True)
        needed = sum(member.size for member in left.values())
        check_room(goal, needed, "the rest of ImageNet's training images")
        done = sum(member.size for member in classes.values()) - needed
        with advancing("training images", needed + done, done) as advance:
            for wnid, member in left.items():
                inner_name = Path(f"{archive}:{wnid}.tar")
                with tarfile.open(fileobj=contents(outer, member)) as inner:
                    _unpack_class(inner, inner_name, goal / wnid)
                advance(member.size)


def _unpack_class(tar: tarfile.TarFile, archive: Path, goal: Path) -> None:
    with making(goal) as place:
        for path, member in tar_files(tar, archive):
            save(contents(tar, member), place / _image_name(path, archive))
        if not any(place.iterdir()):
            raise UserError(f"{archive} has no images; fetch the official file")


def _unpack_val(archive: Path, goal: Path, devkit: Devkit) -> None:
    """Unpack all validation images into class folders, all or none."""
    if goal.is_dir():
        return
    with reading(archive), tarfile.open(archive) as tar:
        check_room(goal.parent, archive.stat().st_size, "ImageNet's validation images")
        with advancing("validation images", len(devkit.val_wnids), in_bytes=False) as advance:
            _unpack_labelled(tar, archive, goal, devkit.val_wnids, advance)


def _unpack_labelled(
    tar: tarfile.TarFile, archive: Path, goal: Path, wnids: Sequence[str], advance: Advance
) -> None:
    seen: Counter[str] = Counter()
    with making(goal) as place:
        for path, member in tar_files(tar, archive):
            name = _image_name(path, archive)
            digits = Path(name).stem.rpartition("_")[2]
            if not digits.isdigit() or not 1 <= int(digits) <= len(wnids):
                raise UserError(
                    f"{archive} holds '{name}', which is none of the {len(wnids)} validation images; fetch "
                    "the official file"
                )
            save(contents(tar, member), place / wnids[int(digits) - 1] / name)
            seen[name] += 1
            advance(1)
        if len(seen) != len(wnids):
            raise UserError(
                f"{archive} has {len(seen)} images instead of {len(wnids)}; fetch the official file"
            )


def _image_name(path: PurePosixPath, archive: Path) -> str:
    if path.suffix.lower() not in IMG_EXTENSIONS:
        raise UserError(f"{archive} holds '{path}', which is no image; fetch the official file")
    return path.name
