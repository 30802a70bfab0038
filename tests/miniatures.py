"""Datasets in their official form, with few and small images, for the tests of their preparation."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from tutelage.data import DatasetInfo, dataset_info
from tutelage.data.imagenet_preparation import ARCHIVES, META, TRUTH, ImageNetArchives
from tutelage.data.official import OfficialFile

CLASSES = ("n01443537", "n02124075", "n04067472")
TRAIN, VAL = 4, 2
"""Images of each class."""


def jpeg(shade: int, side: int = 64, mode: str = "RGB") -> bytes:
    """A plain picture."""
    raw = io.BytesIO()
    colour = shade if mode == "L" else (shade, 255 - shade, shade // 2)
    Image.new(mode, (side, side), colour).save(raw, "JPEG")
    return raw.getvalue()


def tiny_info() -> DatasetInfo:
    """TinyImageNet with three classes."""
    known = dataset_info("tiny-imagenet")
    return replace(known, class_names=CLASSES, train_count=TRAIN * 3, test_count=VAL * 3)


def tiny_files() -> dict[str, bytes]:
    """Path -> content of TinyImageNet as it is unpacked; a picture's shade tells its class."""
    files = {"wnids.txt": "\n".join(reversed(CLASSES)).encode(), "words.txt": b"n01443537\tgoldfish\n"}
    lines = []
    for label, name in enumerate(CLASSES):
        for number in range(TRAIN):
            mode = "L" if number == 1 else "RGB"
            files[f"train/{name}/images/{name}_{number}.JPEG"] = jpeg(80 * label + number, mode=mode)
        files[f"train/{name}/{name}_boxes.txt"] = b"0 0 10 10\n"
        for number in range(VAL):
            image = f"val_{number * 3 + label}.JPEG"
            files[f"val/images/{image}"] = jpeg(80 * label + 10 * number)
            lines.append(f"{image}\t{name}\t0\t32\t44\t62\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = jpeg(7)
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write ``files`` below ``folder``."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_zip(path: Path, files: dict[str, bytes], top: str = "tiny-imagenet-200/") -> Path:
    """Write ``files`` as a zip with everything in the folder ``top``."""
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(top + name, content)
    return path


def as_tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    """``files`` as the bytes of a tar."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def imagenet_info() -> DatasetInfo:
    """ImageNet with three classes."""
    return replace(dataset_info("imagenet"), class_names=CLASSES, train_count=TRAIN * 3, test_count=VAL * 3)


def meta_mat(wnids: Sequence[str]) -> bytes:
    """The table of classes as MATLAB writes it, with one class above the others; ids are not in order."""
    from scipy.io import savemat

    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    kinds = [(name, "O") for name in names]
    rows = [
        (number, wnid, f"words of {wnid}", f"about {wnid}", 0, np.zeros(0), 0)
        for number, wnid in enumerate(wnids, start=1)
    ]
    below = np.arange(1, len(wnids) + 1)
    rows.append((len(wnids) + 1, "n00001740", "entity", "anything", len(wnids), below, 1))
    table = np.zeros((len(rows), 1), dtype=kinds)
    for place, row in enumerate(rows):
        table[place, 0] = row
    raw = io.BytesIO()
    savemat(raw, {"synsets": table})
    return raw.getvalue()


def imagenet_files() -> dict[str, dict[str, bytes]]:
    """What each of the three archives holds: train (a tar for each class), val and devkit."""
    order = (CLASSES[2], CLASSES[0], CLASSES[1])  # the numbers of the devkit don't follow the names
    train = {}
    for label, name in enumerate(CLASSES):
        images = {f"{name}_{number}.JPEG": jpeg(60 * label + number, 24) for number in range(TRAIN)}
        train[f"{name}.tar"] = as_tar(images)
    truth = [1 + number % 3 for number in range(VAL * 3)]
    val = {
        f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(60 * CLASSES.index(order[truth[number - 1] - 1]) + 5, 24)
        for number in range(len(truth), 0, -1)
    }
    top = "ILSVRC2012_devkit_t12"
    devkit = {
        f"{top}/readme.txt": b"hello",
        f"{top}/{META}": meta_mat(order),
        f"{top}/{TRUTH}": "".join(f"{number}\n" for number in truth).encode(),
    }
    return {"train": train, "val": val, "devkit": devkit}


def write_imagenet(folder: Path, files: dict[str, dict[str, bytes]]) -> ImageNetArchives:
    """Write the three archives; says what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for part, content in files.items():
        raw = as_tar(content, "w:gz" if part == "devkit" else "w")
        known: OfficialFile = getattr(ARCHIVES, part)
        (folder / known.name).write_bytes(raw)
        made[part] = OfficialFile(known.name, len(raw), hashlib.md5(raw, usedforsecurity=False).hexdigest())
    return ImageNetArchives(**made)
