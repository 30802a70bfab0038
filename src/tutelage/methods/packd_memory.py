"""PACKD's two memories of the teacher's embeddings: one row an image (CIFAR), or the last ones (ImageNet)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tutelage.data.class_table import ClassTable
from tutelage.data.negatives import draw_negatives
from tutelage.data.partners import draw_partners
from tutelage.errors import UserError
from tutelage.losses.packd import EXCLUDED
from tutelage.methods.memory import Held, MemoryBank

FirstNegative = Literal["own", "class", "none"]


class BankMemory(MemoryBank):
    """One row for each training image; the views of an anchor share their negatives.

    A row that was never written is replaced by its first embedding, and moved towards the later ones.

    Args:
        table: Of the training labels.
        width: D.
        negatives: K, rows of other classes drawn for each anchor.
        first: What stands before them and is a negative too: the anchor's own row, a row of its class, or
            nothing.
        momentum: Share of the old embedding in a row that was written before.
    """

    written: Tensor

    def __init__(
        self, table: ClassTable, width: int, negatives: int, first: FirstNegative, momentum: float
    ) -> None:
        super().__init__(len(table.rows), width, normalised=True)
        self.table = Held(table)
        self.negatives, self.first, self.momentum = negatives, first, momentum
        self.register_buffer("written", torch.zeros(len(table.rows), 1, dtype=torch.bool))

    def draw(
        self,
        index: Tensor,
        labels: Tensor,
        views: int,
        generator: torch.Generator,
        entering: Tensor | None = None,
    ) -> Tensor:
        """Rows to contrast with.

        Args:
            index: `[B]` int64 rows of the anchors.
            labels: `[B]` int64 their classes.
            views: M, views of an anchor.
            generator: On the device.
            entering: Not used: every row is in the bank from the start.

        Returns:
            `[B, K + 1]` int64, or `[B, K]` with nothing before the negatives.
        """
        others = draw_negatives(labels, self.table.parts, self.negatives, generator)
        if self.first == "none":
            return others
        alike = index.unsqueeze(1)
        if self.first == "class":
            alike = draw_partners(labels, self.table.parts, 1, generator)
        return torch.cat([alike, others], dim=1)

    @torch.no_grad()
    def take_in(self, index: Tensor, labels: Tensor, embeddings: Tensor) -> None:
        """Move the anchors' rows towards the teacher's embeddings `[B, D]` of their plain views."""
        self.write(index, self.moved(index, embeddings, self.momentum * self.written[index]))
        self.written.index_fill_(0, index, True)

    def similarities(self, anchors: Tensor, labels: Tensor, chosen: Tensor) -> Tensor:
        """Dot products of the student's embeddings `[B, M, D]` with the chosen rows.

        Returns:
            `[B, M L]`, L the columns of ``chosen``.
        """
        return self.scores(anchors, chosen).flatten(1)


class QueueMemory(MemoryBank):
    """The last embeddings with their classes; every view has negatives of its own.

    The oldest embeddings are overwritten; where the size is a multiple of the batch this is PACKD's queue of
    batches. Places that were never written have the label -1.

    Several processes: each fills its own queue, as in PACKD, or all fill equal ones, by what it is given.

    Args:
        size: Q, embeddings that are kept.
        width: D.
        negatives: K, places of other classes drawn for each view.
        num_classes: C.
    """

    labels: Tensor
    cursor: Tensor

    def __init__(self, size: int, width: int, negatives: int, num_classes: int) -> None:
        super().__init__(size, width, normalised=True)
        self.negatives, self.num_classes = negatives, num_classes
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def places(self, count: int) -> Tensor:
        """Where the next ``count`` embeddings go: `[count]` int64.

        Raises:
            UserError: There is not room for so many.
        """
        if count > len(self.rows):
            raise UserError(
                f"a batch of {count} images does not fit into a queue of {len(self.rows)}; raise "
                "method.queue_size or lower data.batch_size"
            )
        return (self.cursor + torch.arange(count, device=self.cursor.device)) % len(self.rows)

    def draw(
        self,
        index: Tensor,
        labels: Tensor,
        views: int,
        generator: torch.Generator,
        entering: Tensor | None = None,
    ) -> Tensor:
        """Places to contrast with in the queue as it will be with this batch in it.

        Args:
            index: `[B]` int64 rows of the anchors, which don't matter here.
            labels: `[B]` int64 their classes.
            views: M, views of an anchor.
            generator: On the device.
            entering: `[E]` int64 classes of all that enters with this batch; None for ``labels``.

        Returns:
            `[B M, K]` int64, sample-major; places of the own class where the queue holds no other.
        """
        newest = labels if entering is None else entering
        held = self.labels.index_copy(0, self.places(len(newest)), newest)
        empty_last = torch.where(held < 0, self.num_classes, held)
        rows, starts, sizes = ClassTable.of(empty_last, self.num_classes + 1)
        table = ClassTable(rows, starts[:-1], sizes[:-1])
        return draw_negatives(labels.repeat_interleave(views), table, self.negatives, generator)

    @torch.no_grad()
    def take_in(self, index: Tensor, labels: Tensor, embeddings: Tensor) -> None:
        """Put the teacher's embeddings `[B, D]` of the plain views and their classes `[B]` into the queue."""
        places = self.places(len(labels))
        self.write(places, embeddings)
        self.labels.index_copy_(0, places, labels)
        self.cursor.copy_((self.cursor + len(labels)) % len(self.rows))

    def similarities(self, anchors: Tensor, labels: Tensor, chosen: Tensor) -> Tensor:
        """Dot products of the student's embeddings `[B, M, D]` with the chosen places, those of the own class
        set to `EXCLUDED`.

        Returns:
            `[B, M K]`.
        """
        batch, views, _ = anchors.shape
        scores = self.scores(anchors.flatten(0, 1).unsqueeze(1), chosen).squeeze(1)
        own = labels.repeat_interleave(views).unsqueeze(1)
        return scores.masked_fill(self.labels[chosen] == own, EXCLUDED).reshape(batch, -1)
