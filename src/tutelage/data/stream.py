"""Image files, decoded and cut by worker processes while the device trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tutelage.data.augment import normalise
from tutelage.data.batch import Batch
from tutelage.data.catalog import Triple
from tutelage.data.crops import VIEWS, ResizedCrop
from tutelage.data.epochs import ImageData, check_batch_size, check_indices
from tutelage.data.folders import Files, ImageFolders
from tutelage.errors import TutelageError

TOLERATED = 0.001
"""Share of the files that may be unreadable before a run gives up."""


class Item(NamedTuple):
    """One decoded image.

    Attributes:
        image: `[3, S, S]` uint8, or None where the file can't be read.
        row: Its row in the split.
        view: Its view.
    """

    image: Tensor | None
    row: int
    view: int


class Loaded(NamedTuple):
    """One batch as it leaves a worker.

    Attributes:
        images: `[B, 3, S, S]` uint8.
        rows: `[B]` int64.
        views: `[B]` int64.
        bad: Rows of files that couldn't be read, int64.
    """

    images: Tensor
    rows: Tensor
    views: Tensor
    bad: Tensor


def gather(items: list[Item], side: int | None = None) -> Loaded:
    """Put the items together.

    Args:
        items: Decoded images, at least one.
        side: Of the black image that stands for an unreadable one, in pixels; None leaves these out, and
            where nothing is left the images are empty.
    """
    black = None if side is None else torch.zeros(3, side, side, dtype=torch.uint8)
    shown = [item._replace(image=black) if item.image is None else item for item in items]
    good = [item for item in shown if item.image is not None]
    images = [item.image for item in good if item.image is not None]
    numbers = (
        torch.tensor(part, dtype=torch.int64)
        for part in (
            [item.row for item in good],
            [item.view for item in good],
            [item.row for item in items if item.image is None],
        )
    )
    return Loaded(torch.stack(images) if images else torch.empty(0), *numbers)


class Cut(Dataset[Item]):
    """Files by (row, view)."""

    def __init__(self, files: Files, crop: ResizedCrop) -> None:
        self.paths, self.crop = files.paths, crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: tuple[int, int]) -> Item:
        row, view = place
        try:
            with Image.open(self.paths[row]) as image:
                return Item(self.crop(image.convert("RGB"), view), row, view)
        except (OSError, ValueError, SyntaxError):  # what PIL raises for damaged files
            return Item(None, row, view)


class StreamData(ImageData):
    """Image files in folders, for datasets that don't fit into memory.

    Worker processes decode, crop and flip to uint8; the device converts and normalises. A view's number alone
    decides the crop, so any number of workers gives the same batches, and a run resumes at any step. A file
    that can't be read is remembered in `unreadable` and left out of its batch; with several processes, which
    have to agree on the number of rows, it is black.

    Attributes:
        info: Of the dataset, with the size of the images as they are handed out.
        device: Where the batches lie.
        view_count: See `crops.VIEWS`.
        unreadable: See `ImageData`.
    """

    def __init__(
        self,
        folders: ImageFolders,
        device: torch.device | str,
        image_size: int | None = None,
        mean: Triple | None = None,
        std: Triple | None = None,
        augment: bool = True,
        crop_share: float = 0.875,
        train_indices: Tensor | None = None,
        val_indices: Tensor | None = None,
        channels_last: bool = True,
        workers: int = 0,
    ) -> None:
        """Args:
            folders: The files.
            device: Where batches go.
            image_size: Side of the images handed out, in pixels; None takes the dataset's.
            mean: Of the normalisation, on the 0..1 scale; None takes the dataset's.
            std: Likewise.
            augment: False shows training images as they are evaluated.
            crop_share: See `ResizedCrop`.
            train_indices: `[n]` rows of the training files to train on, in the order of `Batch.index`.
            val_indices: `[m]` rows of the training files held out for validation.
            channels_last: Memory format of the batches.
            workers: Processes that decode; 0 decodes in this one.

        Raises:
            UserError: Indices are out of range, repeated or in both parts.
        """
        check_indices(len(folders.train.paths), train_indices, val_indices)
        self.info = dataclasses.replace(folders.info, image_size=image_size or folders.info.image_size)
        self.device = torch.device(device)
        self.mean = torch.tensor(mean or self.info.mean, device=self.device)
        self.std = torch.tensor(std or self.info.std, device=self.device)
        self.view_count = VIEWS
        self.unreadable = set()
        self._crop = ResizedCrop(self.info.image_size, crop_share, flip=self.info.flip)
        self._augment, self._workers = augment, workers
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.splits = {"train": _part(folders.train, train_indices), "test": folders.test}
        if val_indices is not None and len(val_indices):
            self.splits["val"] = _part(folders.train, val_indices)
        self._labels = {name: files.labels.to(self.device) for name, files in self.splits.items()}

    @property
    def train_labels(self) -> Tensor:
        """See `ImageData`."""
        return self._labels["train"]

    def size(self, split: str) -> int:
        """See `ImageData`."""
        return len(self.splits[split].paths) if split in self.splits else 0

    def sample_views(self, count: int, generator: torch.Generator) -> Tensor:
        """See `ImageData`."""
        if not self._augment:
            return torch.zeros(count, dtype=torch.int64)
        return torch.randint(1, VIEWS, (count,), generator=generator)

    def train_batches(
        self, epoch: int, seed: int, batch_size: int, start_step: int = 0, drop_last: bool = False
    ) -> Iterator[Batch]:
        """See `ImageData`."""
        steps = self.steps_per_epoch(batch_size, drop_last)
        order = self.epoch_order(epoch, seed)
        places = list(zip(order.rows.tolist(), order.views.tolist(), strict=True))
        wanted = [places[self.positions(step, batch_size)] for step in range(start_step, steps)]
        alone = self.share.world == 1  # processes have to agree on the number of rows
        return self._load("train", wanted, None if alone else self.info.image_size)

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """See `ImageData`; unreadable files are not counted."""
        self.check_split(split)
        check_batch_size(batch_size)
        places = [(row, 0) for row in range(self.size(split))]
        batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
        return self._load(split, batches[self.share.rank :: self.share.world])

    def take(self, index: Tensor, view: Tensor) -> Batch:
        """See `ImageData`; decoded in threads of this process, and an unreadable file is black."""
        cut = Cut(self.splits["train"], self._crop)
        places = zip(index.tolist(), view.tolist(), strict=True)
        with ThreadPoolExecutor(max(self._workers, 1)) as pool:
            items = list(pool.map(cut.__getitem__, places))
        loaded = gather(items, self.info.image_size)
        self._note("train", loaded.bad.tolist())
        return self._batch("train", loaded)

    def _load(
        self, split: str, wanted: list[list[tuple[int, int]]], side: int | None = None
    ) -> Iterator[Batch]:
        loader: DataLoader[Item] = DataLoader(
            Cut(self.splits[split], self._crop),
            batch_sampler=wanted,
            num_workers=min(self._workers, len(wanted)),
            collate_fn=partial(gather, side=side),
            pin_memory=self.device.type == "cuda",
        )
        for loaded in loader:
            self._note(split, loaded.bad.tolist())
            if len(loaded.rows):
                yield self._batch(split, loaded)

    def _batch(self, split: str, loaded: Loaded) -> Batch:
        images, index, view = (part.to(self.device, non_blocking=True) for part in loaded[:3])
        finished = normalise(images, self.mean, self.std).contiguous(memory_format=self._memory_format)
        return Batch(finished, self._labels[split].index_select(0, index), index, view)

    def _note(self, split: str, bad: list[int]) -> None:
        files = self.splits[split].paths
        self.unreadable.update(files[row] for row in bad)
        total = sum(len(part.paths) for part in self.splits.values())
        if len(self.unreadable) > max(1, TOLERATED * total):
            raise TutelageError(
                f"{len(self.unreadable)} of {total} image files can't be read, {min(self.unreadable)} among "
                "them; replace or remove them"
            )


def _part(files: Files, rows: Tensor | None) -> Files:
    if rows is None:
        return files
    return Files(tuple(files.paths[row] for row in rows.tolist()), files.labels[rows.cpu()])
