"""Datasets of the Hugging Face hub, and such as the ``datasets`` package has saved, read row by row."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from tutelage.data.catalog import Choice, DatasetInfo, register_dataset
from tutelage.data.folders import FOLDER, given_folder
from tutelage.data.sources import TEST_NAMES, TRAIN_NAMES, Source, StoredImages, check_labels, numbered
from tutelage.errors import TutelageError, UserError

FAMILY = "hfds"
NAME = re.compile(rf"{FAMILY}/(?P<path>[^:@]+)(?::(?P<config>[^@]+))?(?:@(?P<revision>.+))?")


class Table(Source):
    """Images in a column of a table on disk.

    Attributes:
        table: The rows of the split with the encoded images, a ``datasets.Dataset``.
        column: That holds them.
        where: The table is from, for messages.
        rows: `[n]` int64, which of its rows are meant.
        labels: See `Source`.
    """

    def __init__(self, table: Any, column: str, where: str, rows: Tensor, labels: Tensor) -> None:
        self.table, self.column, self.where = table, column, where
        self.rows, self.labels = rows, labels

    def open(self, row: int) -> BinaryIO:
        """See `Source`."""
        image = self._image(row)
        if image.get("bytes"):
            return io.BytesIO(image["bytes"])
        if not image.get("path"):
            raise OSError(f"{self.name(row)} is empty")
        return open(image["path"], "rb")

    def name(self, row: int) -> str:
        """See `Source`."""
        path = self._image(row).get("path")
        return f"{self.where}!{int(self.rows[row])}" + (f" ({path})" if path else "")

    def part(self, rows: Tensor) -> Table:
        """See `Source`."""
        kept = rows.cpu()
        return Table(self.table, self.column, self.where, self.rows[kept], self.labels[kept])

    def marks(self) -> Iterator[bytes]:
        """See `Source`: the fingerprint that ``datasets`` keeps beside a table, the column, and the rows."""
        yield f"{getattr(self.table, '_fingerprint', '')} {self.column}".encode()
        yield self.rows.numpy().astype("<i8").tobytes()

    def _image(self, row: int) -> dict[str, Any]:
        image: dict[str, Any] = self.table[int(self.rows[row])][self.column] or {}
        return image


def read_tables(info: DatasetInfo, splits: Mapping[str, Any], choice: Choice) -> StoredImages:
    """Take images and class numbers out of the splits of a ``datasets.DatasetDict``.

    The images are the column of that type, the class numbers that of type ``ClassLabel`` or the one called
    ``label``. Labels that are words are numbered in alphabetical order. A test split without labels (-1 in
    all rows, as ImageNet's) is passed over.

    Raises:
        UserError: Splits or columns are missing or ambiguous, or the classes of both differ.
    """
    where = info.name
    train = _split(splits, choice.train, TRAIN_NAMES, where)
    image = _image_column(splits[train], choice.image, where)
    label = _label_column(splits[train], choice.label, where)
    labelled = {name: split for name, split in splits.items() if not _unlabelled(split, label)}
    test = _split(splits if choice.test else labelled, choice.test, TEST_NAMES, where)
    values, test_values = (_classes(splits[split], label, where) for split in (train, test))
    named, test_named = (_names(splits[split], label) for split in (train, test))
    names = named or _names_of(values, where)
    if (test_named or names) != names:
        raise UserError(
            f"the classes of {where} differ between '{train}' and '{test}'; they must be the same"
        )
    numbers, test_numbers = (_numbers(part, names, where) for part in (values, test_values))
    check_labels(numbers, test_numbers, names, where)
    found = dataclasses.replace(
        info, class_names=names, train_count=len(numbers), test_count=len(test_numbers)
    )
    sources = (
        _table(splits[split], image, f"{where}/{split}", part)
        for split, part in ((train, numbers), (test, test_numbers))
    )
    return StoredImages(found, *sources)


# -- splits and columns -----------------------------------------------------------------------------


def _split(splits: Mapping[str, Any], wanted: str | None, names: Sequence[str], where: str) -> str:
    for name in (wanted,) if wanted else names:
        if name in splits:
            return name
    what, setting = ("training", "train_split") if names == TRAIN_NAMES else ("test", "test_split")
    raise UserError(
        f"{where} has no labelled split of {what} images called {wanted or ' or '.join(names)}, only "
        f"{', '.join(splits)}; name one as data.{setting}"
    )


def _unlabelled(split: Any, label: str) -> bool:
    values = _values(split, label)
    return not len(values) or bool(np.issubdtype(values.dtype, np.integer) and (values < 0).all())


def _image_column(split: Any, wanted: str | None, where: str) -> str:
    from datasets import Image

    found = [name for name, feature in split.features.items() if isinstance(feature, Image)]
    return _column(split, wanted, found, "image", where)


def _label_column(split: Any, wanted: str | None, where: str) -> str:
    from datasets import ClassLabel

    found = [name for name, feature in split.features.items() if isinstance(feature, ClassLabel)]
    if not found and "label" in split.features:
        found = ["label"]
    return _column(split, wanted, found, "label", where)


def _column(split: Any, wanted: str | None, found: Sequence[str], what: str, where: str) -> str:
    there = ", ".join(split.features)
    if wanted is not None:
        if wanted not in split.features:
            raise UserError(f"{where} has no column '{wanted}', only {there}; correct data.{what}_column")
        if what == "image" and wanted not in found:
            raise UserError(
                f"column '{wanted}' of {where} holds no images but {split.features[wanted]}; name another "
                "one as data.image_column"
            )
        return wanted
    if len(found) == 1 or what in found:
        return what if what in found else found[0]
    how_many = "several columns" if found else "no column"
    raise UserError(
        f"{where} has {how_many} that could be the {what} ({there}); name it as data.{what}_column"
    )


# -- classes ----------------------------------------------------------------------------------------


def _values(split: Any, column: str) -> np.ndarray:
    if column not in split.features:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(split.select_columns([column]).with_format("numpy")[column][:])


def _classes(split: Any, column: str, where: str) -> np.ndarray:
    """The labels of a split: numbers, or words."""
    values = _values(split, column)
    if np.issubdtype(values.dtype, np.integer) or all(isinstance(word, str) for word in values.tolist()):
        return values
    raise UserError(
        f"column '{column}' of {where} holds no classes, or some rows have none (its values are "
        f"{values.dtype}); name another one as data.label_column"
    )


def _names(split: Any, column: str) -> tuple[str, ...]:
    """The classes as the type of the column gives them; none where it does not."""
    return tuple(getattr(split.features.get(column), "names", ()))


def _names_of(values: np.ndarray, where: str) -> tuple[str, ...]:
    if np.issubdtype(values.dtype, np.integer):
        return numbered(values, where)
    return tuple(sorted(set(values.tolist())))


def _numbers(values: np.ndarray, names: tuple[str, ...], where: str) -> np.ndarray:
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.int64)
    numbers = {name: number for number, name in enumerate(names)}
    odd = next((word for word in values.tolist() if word not in numbers), None)
    if odd is not None:
        raise UserError(
            f"{where} has test images of class '{odd}', which no training image has; both need the same "
            "classes"
        )
    return np.array([numbers[word] for word in values.tolist()], dtype=np.int64)


def _table(split: Any, image: str, where: str, labels: np.ndarray) -> Table:
    from datasets import Image

    encoded = split.select_columns([image]).cast_column(image, Image(decode=False))
    return Table(encoded, image, where, torch.arange(len(labels)), torch.from_numpy(labels))


# -- finding the tables -----------------------------------------------------------------------------


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Keep ``datasets`` from asking the hub inside the block."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = wanted or before
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _saved(folder: Path) -> Mapping[str, Any]:
    """The splits in a folder that ``save_to_disk`` has made, or one of parquet, arrow or image files."""
    import datasets

    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; dataset '{FAMILY}' is read from --data-dir FOLDER")
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(str(folder))
        else:
            with _offline(True):
                found = datasets.load_dataset(str(folder))
    except Exception as error:
        raise UserError(
            f"the datasets package can't read {folder} ({_first_line(error)}); save it there with "
            "save_to_disk"
        ) from error
    if not isinstance(found, Mapping):
        raise UserError(
            f"{folder} holds one table without splits; make them with train_test_split and save that to disk"
        )
    return found


def _published(name: str, folder: Path, download: bool) -> Mapping[str, Any]:
    """The splits of a dataset of the hub, kept in ``folder``."""
    import datasets

    parts = NAME.fullmatch(name)
    if parts is None:
        raise UserError(
            f"'{name}' names no dataset of the hub; write {FAMILY}/OWNER/NAME, with :CONFIG and @REVISION "
            "where needed"
        )
    kept = folder / (FAMILY if parts["revision"] is None else f"{FAMILY}@{parts['revision']}")
    try:
        with _offline(not download):
            found: Mapping[str, Any] = datasets.load_dataset(
                parts["path"], parts["config"], revision=parts["revision"], cache_dir=str(kept)
            )
    except Exception as error:
        said = _first_line(error)
        if not download:
            raise UserError(f"{name} is not in {kept} ({said}); add --download to fetch it") from error
        raise TutelageError(
            f"{name} can't be fetched ({said}); check its name, the network, and your right to see it"
        ) from error
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


HFDS = dataclasses.replace(
    FOLDER,
    name=FAMILY,
    source=f"{FAMILY}/OWNER/NAME of the Hugging Face hub; {FAMILY} alone for a folder of tables",
    licence="its makers'",
)


@register_dataset(HFDS, chooses=True, family=True)
def _load(info: DatasetInfo, folder: Path | None, download: bool, choice: Choice) -> StoredImages:
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"dataset '{info.name}' needs the package 'datasets'; install it with pip install 'tutelage[hub]'"
        ) from error
    if info.name == FAMILY:
        return read_tables(info, _saved(given_folder(info, folder, download)), choice)
    return read_tables(info, _published(info.name, folder or Path("data"), download), choice)
