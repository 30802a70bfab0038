"""Stored images, decoded and cut by worker processes or threads."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from tutelage.data.crops import VIEWS, ResizedCrop
from tutelage.data.raster import open_image, to_rgb
from tutelage.data.sources import Source

GRACE = 20
"""Seconds that a worker goes on for after it was told to end."""


class Place(NamedTuple):
    """One image as it is to be shown.

    Attributes:
        split: It is stored in.
        row: Of the split.
        view: What is cut out; where images are varied after the cut, only the view's remainder counts here.
    """

    split: str
    row: int
    view: int


class Loaded(NamedTuple):
    """One batch, decoded.

    Attributes:
        images: `[B, 3, S, S]` uint8, stored channels_last; those that can't be read are black.
        rows: `[B]` int64.
        views: `[B]` int64.
        good: `[B]` bool, whether the image could be read.
    """

    images: Tensor
    rows: Tensor
    views: Tensor
    good: Tensor

    def readable(self) -> Loaded:
        """Without the images that can't be read."""
        return self if self.good.all() else Loaded(*(part[self.good] for part in self))


class Item(NamedTuple):
    """One decoded image: `[S, S, 3]` uint8, its row, its view, and whether it could be read."""

    image: Tensor
    row: int
    view: int
    good: bool


class Cut(Dataset[Item]):
    """Images by their places."""

    def __init__(self, sources: Mapping[str, Source], crop: ResizedCrop) -> None:
        self.sources, self.crop = dict(sources), crop

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources.values())

    def __getitem__(self, place: Place) -> Item:
        split, row, view = place
        try:
            with self.sources[split].open(row) as file:
                image = open_image(file)
                image.load()
            decoded = to_rgb(image)
        except Exception:  # what a decoder raises for damaged content is anybody's guess
            return self._unreadable(row, view)
        try:
            cut = self.crop(decoded, view % VIEWS)
        except (OSError, ValueError, MemoryError):  # what resizing raises for odd sizes; not our mistakes
            return self._unreadable(row, view)
        return Item(cut.permute(1, 2, 0), row, view, True)

    def _unreadable(self, row: int, view: int) -> Item:
        black = torch.zeros(self.crop.size, self.crop.size, 3, dtype=torch.uint8)
        return Item(black, row, view, False)


def collate(items: Sequence[Item]) -> Loaded:
    """Put items together; in a worker process in memory that it shares with the main one."""
    images = default_collate([item.image for item in items])
    rows, views, good = (torch.tensor(part) for part in list(zip(*items, strict=True))[1:])
    return Loaded(images.permute(0, 3, 1, 2), rows, views, good)


class Order(Sampler[list[Place]]):
    """The batches that are wanted next."""

    def __init__(self, batches: Iterable[list[Place]] = ()) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Place]]:
        return iter(self.batches)


def outlive_signals(worker: int) -> None:
    """Let the main process decide what Ctrl-C and SIGTERM mean.

    Terminals and schedulers send them to the workers too, and without these the run could not finish its step
    and save. Told to end, a worker does so after `GRACE` seconds, whether the main process still runs or not.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


class Decoder:
    """Decodes and cuts images of several splits.

    The worker processes stay from one epoch to the next and serve training and evaluation in turn. They start
    with the first batch.
    """

    def __init__(
        self, sources: Mapping[str, Source], crop: ResizedCrop, workers: int = 0, pinned: bool = False
    ) -> None:
        """Args:
        sources: The splits by name.
        crop: What is cut out.
        workers: Processes that decode; 0 decodes in this one.
        pinned: Whether batches go into page-locked memory, from which a CUDA device copies by itself.
        """
        self._cut, self._workers, self._pinned = Cut(sources, crop), workers, pinned
        self._order, self._busy = Order(), False
        self._loader: DataLoader[Loaded] | None = None
        self._reading: Iterator[Loaded] = iter(())
        self._threads: ThreadPoolExecutor | None = None

    def batches(self, wanted: Iterable[list[Place]]) -> Iterator[Loaded]:
        """Batches one after the other, a few of them prepared in advance where there are workers."""
        if self._busy:  # somebody has not yet read an earlier answer to its end
            yield from self._made(Order(wanted), staying=False)
            return
        self._busy = True
        try:
            self._order.batches = wanted
            self._start()
            # Nobody else may hold on to what is read from: it is what keeps the workers alive.
            while (loaded := next(self._reading, None)) is not None:
                yield loaded
        finally:
            self._busy = False

    def at_once(self, places: Sequence[Place]) -> Loaded:
        """One batch that nobody could prepare, decoded by threads of this process."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(max(self._workers, 1))
        return collate(list(self._threads.map(self._cut.__getitem__, places)))

    def close(self) -> None:
        """End the worker processes; they start again when they are needed."""
        self._loader, self._reading = None, iter(())

    def _start(self) -> None:
        if self._loader is not None:
            self._reading = iter(self._loader)
            return
        self._loader = self._made(self._order, staying=self._workers > 0)
        self._reading = iter(self._loader)
        # Registered after those of PyTorch, hence called before: they wait five seconds for each worker.
        atexit.register(_close, weakref.ref(self))

    def _made(self, order: Order, staying: bool) -> DataLoader[Loaded]:
        return DataLoader(
            self._cut,  # type: ignore[arg-type]  # items become batches in collate
            batch_sampler=order,
            num_workers=self._workers,
            collate_fn=collate,
            pin_memory=self._pinned,
            persistent_workers=staying,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # or it would draw from the generator that dropout uses
        )


def _close(decoder: weakref.ref[Decoder]) -> None:
    alive = decoder()
    if alive is not None:
        alive.close()
