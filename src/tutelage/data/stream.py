"""Stored images, decoded and cut by worker processes while the device trains."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.catalog import Triple
from tutelage.data.crops import VIEWS, ResizedCrop
from tutelage.data.decoding import Decoder, Loaded, Place
from tutelage.data.digests import digest, sampled
from tutelage.data.epochs import ImageData, check_batch_size, check_indices
from tutelage.data.finish import Erasing, Finish, Policy
from tutelage.data.mixing import Mix
from tutelage.data.sources import Source, StoredImages
from tutelage.errors import TutelageError

TOLERATED = 0.001
"""Share of the files that may be unreadable before a run gives up."""


class StreamData(ImageData):
    """Images in files, archives or tables, for datasets that don't fit into memory.

    Worker processes decode, crop and flip to uint8; the device converts and normalises. A view's number alone
    decides the crop, so any number of workers gives the same batches, and a run resumes at any step. An image
    that can't be read is remembered in `unreadable` and left out of its batch; with several processes, which
    have to agree on the number of rows, it is black.

    Attributes:
        info: Of the dataset, with the size of the images as they are handed out.
        device: Where the batches lie.
        crop_count: See `crops.VIEWS`.
        finish: See `ImageData`.
        unreadable: See `ImageData`.
    """

    def __init__(
        self,
        stored: StoredImages,
        device: torch.device | str,
        image_size: int | None = None,
        mean: Triple | None = None,
        std: Triple | None = None,
        augment: bool = True,
        crop_share: float = 0.875,
        interpolation: str = "random",
        train_indices: Tensor | None = None,
        val_indices: Tensor | None = None,
        channels_last: bool = True,
        workers: int = 0,
        policy: Policy | None = None,
        erasing: Erasing | None = None,
    ) -> None:
        """Args:
            stored: The images.
            device: Where batches go.
            image_size: Side of the images handed out, in pixels; None takes the dataset's.
            mean: Of the normalisation, on the 0..1 scale; None takes the dataset's.
            std: Likewise.
            augment: False shows training images as they are evaluated.
            crop_share: See `ResizedCrop`.
            interpolation: Likewise.
            train_indices: `[n]` rows of the training files to train on, in the order of `Batch.index`.
            val_indices: `[m]` rows of the training files held out for validation.
            channels_last: Memory format of the batches.
            workers: Processes that decode; 0 decodes in this one.
            policy: What is done to cut training images; None for nothing.
            erasing: What replaces a part of normalised training images; None for nothing.

        Raises:
            UserError: Indices are out of range, repeated or in both parts.
        """
        check_indices(len(stored.train), train_indices, val_indices)
        self.info = dataclasses.replace(stored.info, image_size=image_size or stored.info.image_size)
        self.device = torch.device(device)
        centre, scale = (
            torch.tensor(part, device=self.device) for part in (mean or self.info.mean, std or self.info.std)
        )
        self.finish = Finish(centre, scale, channels_last, policy=policy, erasing=erasing)
        self.crop_count = VIEWS
        self.unreadable = set()
        self._augment = augment
        whole = stored.train
        self.splits = {
            "train": whole if train_indices is None else whole.part(train_indices),
            "test": stored.test,
        }
        if val_indices is not None and len(val_indices):
            self.splits["val"] = whole.part(val_indices)
        self._labels = {name: source.labels.to(self.device) for name, source in self.splits.items()}
        self._crop = ResizedCrop(self.info.image_size, crop_share, interpolation, flip=self.info.flip)
        self._decoder = Decoder(self.splits, self._crop, workers, pinned=self.device.type == "cuda")

    @property
    def train_labels(self) -> Tensor:
        """See `ImageData`."""
        return self._labels["train"]

    def identity(self) -> dict[str, Any]:
        """See `ImageData`; of images names and sizes, and the content of some: all would take an epoch."""
        names = hashlib.sha256()
        for mark in self.splits["train"].marks():
            names.update(mark + b"\n")
        return {
            "images": self.digest("train"),
            "names": names.hexdigest(),
            "views": repr(self._crop) if self._augment else "plain",
            "mean": self.finish.mean.flatten().tolist(),
            "std": self.finish.std.flatten().tolist(),
        }

    def size(self, split: str) -> int:
        """See `ImageData`."""
        return len(self.splits[split]) if split in self.splits else 0

    def digest(self, split: str) -> str:
        """See `ImageData`; of the encoded images, and nothing of one that can't be read."""
        self.check_split(split)
        source = self.splits[split]
        return digest(source.labels, (_content(source, row) for row in sampled(len(source)).tolist()))

    def sample_crops(self, count: int, generator: torch.Generator) -> Tensor:
        """See `ImageData`."""
        if not self._augment:
            return torch.zeros(count, dtype=torch.int64)
        return torch.randint(1, VIEWS, (count,), generator=generator)

    def train_batches(self, epoch: int, seed: int, batch_size: int, start_step: int = 0) -> Iterator[Batch]:
        """See `ImageData`."""
        steps = self.steps_per_epoch(batch_size)
        order = self.epoch_order(epoch, seed)
        shares = (self.own(order, step, batch_size) for step in range(start_step, steps))
        wanted = (_places("train", share.rows, share.views) for share in shares)
        mixes = (self.mix(seed, epoch, step) for step in range(start_step, steps))
        return self._load("train", wanted, mixes, complete=self.share.world > 1)

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """See `ImageData`; unreadable files are not counted."""
        self.check_split(split)
        check_batch_size(batch_size)
        rows = torch.arange(self.size(split)).split(batch_size)[self.share.rank :: self.share.world]
        return self._load(split, (_places(split, part, torch.zeros_like(part)) for part in rows))

    def take(self, index: Tensor, view: Tensor) -> Batch:
        """See `ImageData`; decoded in threads of this process, and an unreadable file is black."""
        loaded = self._decoder.at_once(_places("train", index, view))
        self._note("train", loaded)
        return self._batch("train", loaded)

    def _load(
        self,
        split: str,
        wanted: Iterable[list[Place]],
        mixes: Iterable[Mix | None] | None = None,
        complete: bool = False,
    ) -> Iterator[Batch]:
        """The wanted batches; ``complete`` keeps images that can't be read, so that all know their number."""
        for loaded, mix in zip(
            self._decoder.batches(wanted), repeat(None) if mixes is None else mixes, strict=False
        ):
            self._note(split, loaded)
            shown = loaded if complete else loaded.readable()
            if len(shown.rows):
                yield self._batch(split, shown, mix)

    def _batch(self, split: str, loaded: Loaded, mix: Mix | None = None) -> Batch:
        images, index, view = (part.to(self.device, non_blocking=True) for part in loaded[:3])
        finished = self.finish(images, self.draws(loaded.views) if split == "train" else None, mix)
        labels = self._labels[split].index_select(0, index)
        return Batch(finished, self.targets(labels, mix), index, view)

    def _note(self, split: str, loaded: Loaded) -> None:
        source = self.splits[split]
        self.unreadable.update(source.name(row) for row in loaded.rows[~loaded.good].tolist())
        total = sum(len(part) for part in self.splits.values())
        if len(self.unreadable) > max(1, TOLERATED * total):
            raise TutelageError(
                f"{len(self.unreadable)} of {total} image files can't be read, {min(self.unreadable)} among "
                "them; replace or remove them"
            )


def _content(source: Source, row: int) -> bytes:
    try:
        with source.open(row) as file:
            return file.read()
    except OSError:
        return b""


def _places(split: str, rows: Tensor, views: Tensor) -> list[Place]:
    return [Place(split, *numbers) for numbers in zip(rows.tolist(), views.tolist(), strict=True)]
