"""A whole dataset on the device, handed out in augmented and normalised batches without a data loader."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.augment import CropFlip, normalise
from tutelage.data.batch import Batch
from tutelage.data.catalog import Dataset, Triple
from tutelage.errors import UserError


class Split(NamedTuple):
    """One part of the data on the device.

    Attributes:
        images: `[n, 3, H, W]` uint8, stored channels_last.
        labels: `[n]` int64.
    """

    images: Tensor
    labels: Tensor


class EpochOrder(NamedTuple):
    """What an epoch shows, position by position.

    Attributes:
        rows: `[n]` int64, a permutation of the rows of the training subset.
        views: `[n]` int64, the view of the image at the same position.
    """

    rows: Tensor
    views: Tensor


class ResidentData:
    """Images as uint8 on the device, cropped, flipped and normalised there a batch at a time.

    Every random choice of an epoch follows from (seed, epoch) alone, drawn on the CPU so that it is the same
    for every device: a run is resumed at any step by asking for that step, with no generator state to keep.

    Attributes:
        info: Of the dataset.
        device: Where everything lies.
        mean: `[3]` float32 on the device.
        std: `[3]` float32 on the device.
        augment: The views of training images.
        splits: The parts by name; "val" is absent where nothing was held out.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device | str,
        mean: Triple | None = None,
        std: Triple | None = None,
        augment: CropFlip | None = None,
        train_indices: Tensor | None = None,
        val_indices: Tensor | None = None,
        channels_last: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Move a dataset to a device.

        Args:
            dataset: To take the images from.
            device: To hold them.
            mean: Of the normalisation, on the 0..1 scale; the dataset's own by default.
            std: Likewise.
            augment: How to vary training images; the dataset's customary crop and flip by default.
            train_indices: `[n]` rows of the training images to train on, in the order that gives
                `Batch.index`; all of them by default.
            val_indices: `[m]` rows of the training images held out for validation.
            channels_last: Memory format of the batches.
            dtype: Floating-point type of the batches.

        Raises:
            UserError: Indices are out of range, repeated or in both parts, or the augmentation is for images
                of another size.
        """
        self.info = dataset.info
        self.device = torch.device(device)
        self.mean = torch.tensor(mean or dataset.info.mean, device=self.device)
        self.std = torch.tensor(std or dataset.info.std, device=self.device)
        self.augment = augment or dataset.info.augment
        if self.augment.size != dataset.info.image_size:
            raise UserError(
                f"the augmentation cuts images of {self.augment.size} pixels, "
                f"but those of {dataset.info.name} have {dataset.info.image_size}"
            )
        _check_indices(len(dataset.train_labels), train_indices, val_indices)
        self.splits = {"train": self._resident(dataset.train_images, dataset.train_labels, train_indices)}
        if val_indices is not None and len(val_indices):
            self.splits["val"] = self._resident(dataset.train_images, dataset.train_labels, val_indices)
        self.splits["test"] = self._resident(dataset.test_images, dataset.test_labels, None)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._dtype = dtype

    @property
    def train_size(self) -> int:
        """Number of images in the training subset."""
        return len(self.splits["train"].labels)

    def size(self, split: str) -> int:
        """Number of images in a split; 0 where it does not exist."""
        return len(self.splits[split].labels) if split in self.splits else 0

    @property
    def train_labels(self) -> Tensor:
        """`[n]` int64 labels of the training subset, on the device."""
        return self.splits["train"].labels

    def steps_per_epoch(self, batch_size: int, drop_last: bool = False) -> int:
        """Number of batches in an epoch; the last may be smaller unless it is dropped.

        Raises:
            UserError: The batch size is below 1, or leaves no batch at all.
        """
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {batch_size}")
        if not drop_last:
            return math.ceil(self.train_size / batch_size)
        if batch_size > self.train_size:
            raise UserError(
                f"a batch size of {batch_size} leaves no whole batch of {self.train_size} training images; "
                "choose a smaller one or keep the last, partial batch"
            )
        return self.train_size // batch_size

    def epoch_order(self, epoch: int, seed: int) -> EpochOrder:
        """The order and the views of one epoch, fixed by (seed, epoch), on the device."""
        generator = torch.Generator().manual_seed(_epoch_seed(epoch, seed))
        rows = torch.randperm(self.train_size, generator=generator)
        views = self.augment.sample(self.train_size, generator)
        return EpochOrder(rows.to(self.device), views.to(self.device))

    def train_batches(
        self, epoch: int, seed: int, batch_size: int, start_step: int = 0, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Augmented batches of one epoch, from a given step on.

        Args:
            epoch: Number of the epoch, from 0.
            seed: Of the run.
            batch_size: Images a batch.
            start_step: First step to yield; the batches are those of the whole epoch.
            drop_last: Leave out the last batch where it is smaller.

        Raises:
            UserError: As `steps_per_epoch`.
        """
        steps = self.steps_per_epoch(batch_size, drop_last)
        order = self.epoch_order(epoch, seed)
        for step in range(start_step, steps):
            positions = slice(step * batch_size, (step + 1) * batch_size)
            yield self.take(order.rows[positions], order.views[positions])

    def take(self, index: Tensor, view: Tensor) -> Batch:
        """The given views of the given training images.

        Args:
            index: `[B]` int64 rows of the training subset, on the device.
            view: `[B]` int64 view ids of `augment`, on the device.
        """
        images, labels = self.splits["train"]
        cut = self.augment.apply(images, index, view)
        return Batch(self._finished(cut), labels.index_select(0, index), index, view)

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Batches of a whole split in order, as the images are; the last may be smaller.

        Args:
            split: "train" (the training subset, not augmented), "val" or "test".
            batch_size: Images a batch.

        Raises:
            UserError: There is no such split, or the batch size is below 1.
        """
        if split not in self.splits:
            raise UserError(
                f"there is no {split!r} split, only {', '.join(self.splits)}; "
                "hold out validation images with --val-fraction"
            )
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {batch_size}")
        images, labels = self.splits[split]
        everything = torch.arange(len(labels), device=self.device)
        for chunk, targets, index in zip(
            images.split(batch_size), labels.split(batch_size), everything.split(batch_size), strict=True
        ):
            view = torch.full_like(index, self.augment.identity)
            yield Batch(self._finished(chunk), targets, index, view)

    def _finished(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std, self._dtype).contiguous(
            memory_format=self._memory_format
        )

    def _resident(self, images: Tensor, labels: Tensor, rows: Tensor | None) -> Split:
        if rows is not None:
            images, labels = images[rows.cpu()], labels[rows.cpu()]
        return Split(
            images.to(self.device).contiguous(memory_format=torch.channels_last), labels.to(self.device)
        )


def _epoch_seed(epoch: int, seed: int) -> int:
    """A well-mixed seed for each (seed, epoch), so that neighbouring runs and epochs share nothing."""
    digest = hashlib.sha256(f"tutelage epoch order {seed} {epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _check_indices(total: int, train: Tensor | None, val: Tensor | None) -> None:
    """Refuse rows outside 0..total-1, repeated rows, and rows that are both trained and validated on."""
    for name, rows in (("training", train), ("validation", val)):
        if rows is None or not len(rows):
            continue
        if int(rows.min()) < 0 or int(rows.max()) >= total:
            raise UserError(
                f"the {name} rows must lie in 0..{total - 1}, got {int(rows.min())}..{int(rows.max())}"
            )
        if len(rows.unique()) != len(rows):
            raise UserError(f"the {name} rows name some images twice")
    if train is not None and not len(train):
        raise UserError(
            "the training subset is empty; choose a larger few-shot ratio or a smaller validation fraction"
        )
    if val is not None and len(val):
        trained = torch.arange(total) if train is None else train.cpu()
        if torch.isin(val.cpu(), trained).any():
            raise UserError(
                "some validation images are also trained on; leave their rows out of the training rows"
            )
