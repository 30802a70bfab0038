"""A whole dataset on the device, handed out in augmented and normalised batches without a data loader."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.data.augment import Views
from tutelage.data.batch import Batch
from tutelage.data.catalog import Dataset, Triple
from tutelage.data.digests import digest, sampled
from tutelage.data.epochs import EpochOrder, ImageData, check_batch_size, check_indices
from tutelage.data.finish import Erasing, Finish, Policy
from tutelage.data.mixing import Mix
from tutelage.errors import UserError


class Split(NamedTuple):
    """One part of the data on the device.

    Attributes:
        images: `[n, 3, H, W]` uint8, stored channels_last.
        labels: `[n]` int64.
    """

    images: Tensor
    labels: Tensor


class ResidentData(ImageData):
    """Images as uint8 on the device, cropped, flipped and normalised there a batch at a time.

    Attributes:
        info: Of the dataset.
        device: Where everything lies.
        augment: How training images are cut.
        finish: See `ImageData`.
        splits: The parts by name; "val" is absent where nothing was held out.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device | str,
        mean: Triple | None = None,
        std: Triple | None = None,
        augment: Views | None = None,
        train_indices: Tensor | None = None,
        val_indices: Tensor | None = None,
        channels_last: bool = True,
        dtype: torch.dtype = torch.float32,
        policy: Policy | None = None,
        erasing: Erasing | None = None,
    ) -> None:
        """Move a dataset to a device.

        Args:
            dataset: To take the images from.
            device: To hold them.
            mean: Of the normalisation, on the 0..1 scale; the dataset's own by default.
            std: Likewise.
            augment: How to cut training images; the dataset's customary crop and flip by default.
            train_indices: `[n]` rows of the training images to train on, in the order that gives
                `Batch.index`; all of them by default.
            val_indices: `[m]` rows of the training images held out for validation.
            channels_last: Memory format of the batches.
            dtype: Floating-point type of the batches.
            policy: What is done to cut training images; None for nothing.
            erasing: What replaces a part of normalised training images; None for nothing.

        Raises:
            UserError: Indices are out of range, repeated or in both parts, or the augmentation is for images
                of another size.
        """
        self.augment: Views = augment or dataset.info.augment
        self.info = dataclasses.replace(dataset.info, image_size=self.augment.out_size)
        self.device = torch.device(device)
        centre, scale = (
            torch.tensor(part, device=self.device)
            for part in (mean or dataset.info.mean, std or dataset.info.std)
        )
        self.finish = Finish(centre, scale, channels_last, dtype, policy, erasing)
        if self.augment.size != dataset.info.image_size:
            raise UserError(
                f"the augmentation cuts images of {self.augment.size} pixels, "
                f"but those of {dataset.info.name} have {dataset.info.image_size}"
            )
        self.crop_count = self.augment.count
        self.unreadable = set()
        check_indices(len(dataset.train_labels), train_indices, val_indices)
        self.splits = {"train": self._resident(dataset.train_images, dataset.train_labels, train_indices)}
        if val_indices is not None and len(val_indices):
            self.splits["val"] = self._resident(dataset.train_images, dataset.train_labels, val_indices)
        self.splits["test"] = self._resident(dataset.test_images, dataset.test_labels, None)

    def identity(self) -> dict[str, Any]:
        """See `ImageData`; two that are equal have the same images to the last bit."""
        pixels = self.splits["train"].images.permute(0, 2, 3, 1).cpu().contiguous()
        return {
            "shape": list(pixels.shape),
            "pixels": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
            "views": repr(self.augment),
            "mean": self.finish.mean.tolist(),
            "std": self.finish.std.tolist(),
        }

    @property
    def train_labels(self) -> Tensor:
        """See `ImageData`."""
        return self.splits["train"].labels

    def size(self, split: str) -> int:
        """See `ImageData`."""
        return len(self.splits[split].labels) if split in self.splits else 0

    def digest(self, split: str) -> str:
        """See `ImageData`; of uncut images."""
        self.check_split(split)
        images, labels = self.splits[split]
        some = images[sampled(len(images)).to(self.device)].cpu().contiguous()
        return digest(labels, (image.numpy().tobytes() for image in some))

    def sample_crops(self, count: int, generator: torch.Generator) -> Tensor:
        """See `ImageData`."""
        return self.augment.sample(count, generator)

    def train_batches(self, epoch: int, seed: int, batch_size: int, start_step: int = 0) -> Iterator[Batch]:
        """See `ImageData`."""
        steps = self.steps_per_epoch(batch_size)
        order = self.epoch_order(epoch, seed)
        there = EpochOrder(*(part.to(self.device) for part in order))
        for step in range(start_step, steps):
            draws = self.draws(self.own(order, step, batch_size).views)
            index, view = self.own(there, step, batch_size)
            yield self._batch(index, view, draws, self.mix(seed, epoch, step))

    def take(self, index: Tensor, view: Tensor) -> Batch:
        """See `ImageData`."""
        return self._batch(index, view, self.draws(view))

    def _batch(self, index: Tensor, view: Tensor, draws: Tensor | None, mix: Mix | None = None) -> Batch:
        images, labels = self.splits["train"]
        cut = self.augment.apply(images, index, view % self.crop_count)
        finished = self.finish(cut, draws, mix)
        return Batch(finished, self.targets(labels.index_select(0, index), mix), index, view)

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """See `ImageData`."""
        self.check_split(split)
        check_batch_size(batch_size)
        images, labels = self.splits[split]
        everything = torch.arange(len(labels), device=self.device)
        chunks = zip(*(part.split(batch_size) for part in (images, labels, everything)), strict=True)
        for chunk, targets, index in islice(chunks, self.share.rank, None, self.share.world):
            view = torch.full_like(index, self.augment.identity)
            yield Batch(self.finish(self.augment.plain(chunk)), targets, index, view)

    def _resident(self, images: Tensor, labels: Tensor, rows: Tensor | None) -> Split:
        if rows is not None:
            images, labels = images[rows.cpu()], labels[rows.cpu()]
        return Split(
            images.to(self.device).contiguous(memory_format=torch.channels_last), labels.to(self.device)
        )
