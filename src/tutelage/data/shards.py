"""WebDataset shards: tar files in which the files of a sample follow each other.

They are made to be read from front to back, which fixes neither order nor position. Here every shard is
looked through once and it is noted where each image lies; from then on the images are as good as files.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from tutelage.data.catalog import Choice, DatasetInfo, register_dataset
from tutelage.data.folders import FOLDER, given_folder
from tutelage.data.packed import Index, Member, find_split, indexed, members, opened, packed, read_at
from tutelage.data.progress import advancing
from tutelage.data.sources import TEST_NAMES, TRAIN_NAMES, StoredImages, check_labels, numbered, read_lines
from tutelage.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp")
"""Kinds of files that images are taken from, in this order."""
PICKLES = ("pyd", "pickle", "pkl", "pth", "pt")
"""Kinds of files that can hold programs."""
INFOS = ("_info.json", "info.json")
NAME_LISTS = ("classnames.txt", "classes.txt")
LONGEST_LABEL = 2**20
"""Bytes; no class number takes as many."""
HIGHEST_LABEL = 10**9 - 1
"""Nor is any greater: it has nine digits at most."""

SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
"""The sample that a file belongs to, and what it holds of it."""


class Split(NamedTuple):
    """The shards of one split.

    Attributes:
        name: Of the split.
        shards: Their files.
        counts: Samples of each as the dataset says; None where it doesn't.
        label: JSON field of the class numbers as the dataset says; None where it doesn't.
    """

    name: str
    shards: tuple[Path, ...]
    counts: tuple[int, ...] | None = None
    label: str | None = None


def read_shards(info: DatasetInfo, folder: Path, choice: Choice) -> StoredImages:
    """Find the shards in ``folder`` and what they hold.

    Splits are those of ``_info.json`` as timm's readers have it; without it, the shards in ``folder/train``
    or with ``train`` in their names. Class names stand in ``classnames.txt``, one a line; without it the
    classes are numbers.

    Raises:
        UserError: Shards are missing, damaged, or without labels; a class has no training images, or the test
            images have classes that the training images have not.
    """
    listed = _listed(folder)
    train = _split(folder, listed, choice.train, TRAIN_NAMES)
    test = _split(folder, listed, choice.test, TEST_NAMES)
    indices = [_index(split, choice) for split in (train, test)]
    train_labels, test_labels = (index.labels for index in indices)
    names = _class_names(folder, train_labels)
    check_labels(train_labels, test_labels, names, folder)
    train_source, test_source = (
        packed(split.shards, index) for split, index in zip((train, test), indices, strict=True)
    )
    found = dataclasses.replace(
        info, class_names=names, train_count=len(train_source), test_count=len(test_source)
    )
    return StoredImages(found, train_source, test_source)


# -- which shards -----------------------------------------------------------------------------------


def _listed(folder: Path) -> dict[str, Split]:
    """The splits that the dataset's own description names."""
    path = next((folder / name for name in INFOS if (folder / name).is_file()), None)
    if path is None:
        return {}
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
        return {name: _described(name, folder, facts) for name, facts in splits.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} doesn't say which shards make up each split ({error!r}); repair or remove it"
        ) from error


def _described(name: str, folder: Path, facts: Mapping[str, Any]) -> Split:
    shards = tuple(folder / file for file in facts["filenames"])
    counts = tuple(facts["shard_lengths"]) if facts.get("shard_lengths") else None
    if counts is not None and len(counts) != len(shards):
        raise ValueError(f"'{name}' has {len(counts)} shard_lengths for {len(shards)} filenames")
    return Split(name, shards, counts, facts.get("alt_label") or None)


def _split(folder: Path, listed: Mapping[str, Split], wanted: str | None, names: Sequence[str]) -> Split:
    for name in (wanted,) if wanted else names:
        if name in listed:
            return listed[name]
    name, shards = find_split(folder, wanted, names)
    counts = {
        path: count
        for split in listed.values()
        for path, count in zip(split.shards, split.counts or (), strict=False)
    }
    known = [counts[path] for path in shards if path in counts]
    return Split(name, shards, tuple(known) if len(known) == len(shards) else None)


# -- what is in them --------------------------------------------------------------------------------


def _index(split: Split, choice: Choice) -> Index:
    kind = {"shards": split.name, "image": choice.image, "label": choice.label or split.label}
    return indexed(kind, split.shards, lambda: _read(split, choice))


def _read(split: Split, choice: Choice) -> Index:
    places: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    with advancing(f"indexing {split.name}", len(split.shards), in_bytes=False) as advance:
        for number, path in enumerate(split.shards):
            count = 0
            with opened(path) as file:
                for key, sample in _samples(file):
                    count += 1
                    label = _label(file, sample, choice.label or split.label, f"{path}!{key}")
                    if label >= 0:  # timm's way to leave a sample out
                        image = _image(sample, choice.image, f"{path}!{key}")
                        places.append((number, image.header, image.start, image.size))
                        labels.append(label)
            if split.counts is not None and count != split.counts[number]:
                raise UserError(
                    f"{path} holds {count} samples, but the dataset's _info.json says "
                    f"{split.counts[number]}; fetch it again"
                )
            advance(1)
    return Index(np.array(places, dtype=np.int64).reshape(-1, 4), np.array(labels, dtype=np.int64))


def _samples(file: IO[bytes]) -> Iterator[tuple[str, dict[str, Member]]]:
    """The samples of a shard: files that follow each other and are named alike up to the first dot."""
    named = ((SAMPLE.fullmatch(member.name), member) for member in members(file))
    kept = [(found[1], found[2].lower(), member) for found, member in named if found]
    for key, files in groupby(kept, key=lambda part: part[0]):
        yield key, {kind: member for _, kind, member in files}


def _image(sample: Mapping[str, Member], wanted: str | None, where: str) -> Member:
    for kind in (wanted,) if wanted else IMAGES:
        if kind in sample:
            return sample[kind]
    raise UserError(
        f"sample {where} has no image ({wanted or ', '.join(IMAGES)}), but {_kinds(sample)}; name its kind "
        "as data.image_column, or write the shards again"
    )


def _label(file: IO[bytes], sample: Mapping[str, Member], field: str | None, where: str) -> int:
    """A sample's class number: its .cls file, or a field of its .json."""
    if field in (None, "cls") and "cls" in sample:
        text = read_at(file, sample["cls"].start, min(sample["cls"].size, LONGEST_LABEL)).strip()
        if not re.fullmatch(rb"-?\d{1,9}", text):
            raise UserError(f"the label of sample {where} is no class number but {text[:40]!r}")
        return int(text)
    if "json" not in sample:
        raise UserError(
            f"sample {where} has no label (cls, or json), but {_kinds(sample)}; write the shards again with "
            "a .cls file for each image"
        )
    content = read_at(file, sample["json"].start, min(sample["json"].size, LONGEST_LABEL))
    try:
        fields: dict[str, Any] = json.loads(content)
        label = fields[field or "label"]
        if isinstance(label, (bool, float)):
            raise ValueError(label)
        number = int(label)
        if abs(number) > HIGHEST_LABEL:
            raise ValueError(f"a number of {len(str(label))} digits")
        return number
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"the json of sample {where} has no class number in its field '{field or 'label'}' ({error!r}); "
            "name the field as data.label_column"
        ) from error


def _kinds(sample: Mapping[str, Member]) -> str:
    pickles = any(kind in PICKLES for kind in sample)
    return f"{', '.join(sorted(sample))}" + " (which may hold programs and is never unpacked)" * pickles


# -- the classes ------------------------------------------------------------------------------------


def _class_names(folder: Path, labels: np.ndarray) -> tuple[str, ...]:
    path = next((folder / name for name in NAME_LISTS if (folder / name).is_file()), None)
    if path is None:
        return numbered(labels, folder)
    return tuple(read_lines(path))


WDS = dataclasses.replace(
    FOLDER,
    name="wds",
    source="WebDataset shards: tar files with .jpg and .cls, or .json, for each sample",
    licence="its makers'",
)


@register_dataset(WDS, chooses=True)
def _load(info: DatasetInfo, folder: Path | None, download: bool, choice: Choice) -> StoredImages:
    return read_shards(info, given_folder(info, folder, download), choice)
