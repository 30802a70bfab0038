"""What every source of training images has: sizes, and an order that follows from seed and epoch."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.catalog import DatasetInfo
from tutelage.data.finish import SEEDS, Finish
from tutelage.data.mixing import Mix, Mixing
from tutelage.errors import UserError

ROUND = 256
"""An epoch with repeats has a multiple of this many images, as in timm."""


class EpochOrder(NamedTuple):
    """What an epoch shows, position by position.

    Attributes:
        rows: `[n]` int64, a permutation of the rows of the training subset; with repeats some of them, each
            several times in a row.
        views: `[n]` int64, the view of the image at the same position.
    """

    rows: Tensor
    views: Tensor


class Share(NamedTuple):
    """The part of each training batch that one of several processes takes.

    Parts are contiguous, in rank order, and differ by one row at most. Where rows i and B - 1 - i of a batch
    are to be mixed, a part is made of such pairs instead, so many rows from the front and their partners from
    the back: in reverse order it has each row's partner in the row's place. Parts then differ by two rows.

    A batch with fewer than two rows for each process, which can only be the last of an epoch, is taken whole
    by all of them: batch norm can't do with a single row.

    Attributes:
        rank: Number of this process, from 0.
        world: How many there are.
        paired: Whether rows stay with their partners.
    """

    rank: int = 0
    world: int = 1
    paired: bool = False

    def counts(self, rows: int) -> tuple[int, ...]:
        """Rows of each process in a batch of ``rows``; one number alone where each takes the whole."""
        if self.world == 1 or rows < 2 * self.world:
            return (rows,)
        each = 2 if self.paired else 1
        least, more = divmod(rows // each, self.world)
        counts = [each * (least + (rank < more)) for rank in range(self.world)]
        counts[-1] += rows % each  # the row in the middle, which is its own partner
        return tuple(counts)

    def unequal(self, rows: int) -> tuple[int, ...] | None:
        """`counts` where they are not the same for all, else None."""
        counts = self.counts(rows)
        return None if len(counts) == self.world and len(set(counts)) == 1 else counts

    def factor(self, rows: int) -> float:
        """What this process's mean is multiplied by so that the processes' mean is that over all rows."""
        counts = self.counts(rows)
        return 1.0 if len(counts) == 1 else counts[self.rank] * self.world / rows

    def counted(self, rows: int) -> int:
        """Rows that this process adds to a sum over all processes."""
        counts = self.counts(rows)
        return counts[self.rank] if len(counts) > 1 else rows * (self.rank == 0)

    def part(self, rows: int) -> tuple[slice, ...]:
        """Which of a batch's rows this process takes, in this order."""
        counts = self.counts(rows)
        if len(counts) == 1:
            return (slice(0, rows),)
        begin, own = sum(counts[: self.rank]), counts[self.rank]
        if not self.paired:
            return (slice(begin, begin + own),)
        first = begin // 2
        return slice(first, first + (own + 1) // 2), slice(rows - first - own // 2, rows - first)


class ImageData(ABC):
    """Training, validation and test images, handed out in normalised batches on a device.

    Every random choice of an epoch follows from (seed, epoch) alone, drawn on the CPU so that it is the same
    for every device: a run is resumed at any step by asking for that step, with no generator state to keep.

    Attributes:
        info: Of the dataset; its image size is that of the batches.
        device: Where the batches lie.
        crop_count: How many ways there are to cut a training image.
        finish: What is done to cut images. Where it varies them, view ``s * crop_count + c`` is cut c with
            draw s.
        mixing: How training batches are mixed, with labels as distributions; None for not at all.
        repeats: How often each image is shown in a row in an epoch of fewer images; 0 for each image once.
        drop_last: Whether the last batch of an epoch is left out where it is smaller.
        unreadable: Files that couldn't be read so far; always empty where the images are in memory.
        share: What this process hands out of every batch. In evaluation it hands out every ``world``-th one,
            so that an image is seen in the same batch however many processes there are.
    """

    info: DatasetInfo
    device: torch.device
    crop_count: int
    finish: Finish
    unreadable: set[str]
    mixing: Mixing | None = None
    repeats: int = 0
    drop_last: bool = False
    share: Share = Share()

    @property
    @abstractmethod
    def train_labels(self) -> Tensor:
        """`[n]` int64 labels of the training subset, on the device."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides which normalised image a row and a view of the training images stand for.

        Of images that `finish` does not vary. The values are such as JSON can hold, and don't depend on where
        the images are stored.
        """

    @abstractmethod
    def size(self, split: str) -> int:
        """Number of images in a split; 0 where it does not exist."""

    @abstractmethod
    def digest(self, split: str) -> str:
        """What tells a split from others: of its labels and some of its images, wherever they are stored.

        Raises:
            UserError: There is no such split.
        """

    @abstractmethod
    def sample_crops(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw ways to cut images, `[count]` int64 in 0..crop_count - 1, on the CPU."""

    @abstractmethod
    def train_batches(self, epoch: int, seed: int, batch_size: int, start_step: int = 0) -> Iterator[Batch]:
        """Augmented batches of one epoch, from a given step on.

        Args:
            epoch: Number of the epoch, from 0.
            seed: Of the run.
            batch_size: Images a batch.
            start_step: First step to yield; the batches are those of the whole epoch.

        Raises:
            UserError: As `steps_per_epoch`.
        """

    @abstractmethod
    def take(self, index: Tensor, view: Tensor) -> Batch:
        """The given views of the given training images.

        Args:
            index: `[B]` int64 rows of the training subset, on the device.
            view: `[B]` int64 view ids, on the device.
        """

    @abstractmethod
    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Batches of a whole split in order, not augmented; the last may be smaller.

        Args:
            split: "train" (the training subset), "val" or "test".
            batch_size: Images a batch.

        Raises:
            UserError: There is no such split, or the batch size is below 1.
        """

    @property
    def train_size(self) -> int:
        """Number of images in the training subset."""
        return self.size("train")

    @property
    def epoch_size(self) -> int:
        """Number of images that an epoch shows."""
        total = self.train_size
        return total // ROUND * ROUND if self.repeats and total >= ROUND else total

    @property
    def view_count(self) -> int:
        """How many distinct views a training image has."""
        return self.crop_count * (SEEDS if self.finish.varies else 1)

    def sample_views(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw view ids, `[count]` int64 on the CPU."""
        crops = self.sample_crops(count, generator)
        if not self.finish.varies:
            return crops
        return torch.randint(1, SEEDS, (count,), generator=generator) * self.crop_count + crops

    def draws(self, view: Tensor) -> Tensor | None:
        """What `finish` needs to know of views `[B]`: `[B]` int64, or None where it does not vary images."""
        return view // self.crop_count if self.finish.varies else None

    def mix(self, seed: int, epoch: int, step: int) -> Mix | None:
        """How the training batch of a step is mixed."""
        if self.mixing is None:
            return None
        return self.mixing.draw(seed, epoch, step, self.info.image_size)

    def targets(self, labels: Tensor, mix: Mix | None) -> Tensor:
        """Targets of a batch with ``labels`` `[B]`: these, or `[B, C]` for one that was mixed."""
        return labels if mix is None else mix.labels(labels, self.info.num_classes)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches in an epoch; the last may be smaller unless `drop_last`.

        Raises:
            UserError: The batch size is below 1, or leaves no batch at all.
        """
        check_batch_size(batch_size)
        if not self.drop_last:
            return math.ceil(self.epoch_size / batch_size)
        if batch_size > self.epoch_size:
            raise UserError(
                f"a batch size of {batch_size} leaves no whole batch of {self.epoch_size} training images; "
                "choose a smaller one or keep the last, partial batch"
            )
        return self.epoch_size // batch_size

    def batch_rows(self, step: int, batch_size: int) -> int:
        """Images of the batch of a step over all processes; the last may have fewer."""
        return min(batch_size, self.epoch_size - step * batch_size)

    def own(self, order: EpochOrder, step: int, batch_size: int) -> EpochOrder:
        """This process's part of a step's batch."""
        batch = slice(step * batch_size, (step + 1) * batch_size)
        parts = self.share.part(self.batch_rows(step, batch_size))
        return EpochOrder(*(torch.cat([values[batch][part] for part in parts]) for values in order))

    def epoch_order(self, epoch: int, seed: int) -> EpochOrder:
        """The order and the views of one epoch, fixed by (seed, epoch), on the CPU.

        With repeats as ``timm.data.RepeatAugSampler`` gives to one process: the first so many of a list in
        which each image of a permutation stands several times in a row.
        """
        generator = torch.Generator().manual_seed(_epoch_seed(epoch, seed))
        rows = torch.randperm(self.train_size, generator=generator)
        if self.repeats:
            rows = rows.repeat_interleave(self.repeats)[: self.epoch_size]
        return EpochOrder(rows, self.sample_views(len(rows), generator))

    def check_split(self, split: str) -> None:
        """Refuse a split that isn't there.

        Raises:
            UserError: It isn't.
        """
        if not self.size(split):
            there = [name for name in ("train", "val", "test") if self.size(name)]
            raise UserError(
                f"there is no {split!r} split, only {', '.join(there)}; "
                "hold out validation images with --val-fraction"
            )


def check_batch_size(batch_size: int) -> None:
    """Refuse an empty batch.

    Raises:
        UserError: It is one.
    """
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {batch_size}")


def _epoch_seed(epoch: int, seed: int) -> int:
    """A well-mixed seed for each (seed, epoch), so that neighbouring runs and epochs share nothing."""
    digest = hashlib.sha256(f"tutelage epoch order {seed} {epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def check_indices(total: int, train: Tensor | None, val: Tensor | None) -> None:
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
