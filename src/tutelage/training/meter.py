"""Running sums over an epoch, on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tutelage.training.distributed import sum_over_ranks
from tutelage.training.step import StepResult


class Meter:
    """Sums over an epoch, kept on the device and read only when something is shown."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.correct = torch.zeros(2, dtype=torch.int64, device=self.device)
        self.images = 0

    def add(self, result: StepResult, images: int) -> None:
        """Add one step's loss, terms and hits, weighted by its images.

        Args:
            result: Of the step.
            images: How many this process adds; 0 where another one adds the same.
        """
        row = torch.stack([result.loss.detach(), *result.terms.values()]).double() * images
        self.names = list(result.terms)
        self.sums = row if self.sums is None else self.sums.add_(row)
        if images:
            self.correct += result.correct
        self.images += images

    def read(self) -> dict[str, Any]:
        """Means so far, over all processes; copies a few numbers to the host."""
        return self._means(sum_over_ranks)

    def read_own(self) -> dict[str, Any]:
        """Means so far of what this process added, without the others."""
        return self._means(lambda sums: sums)

    def _means(self, total: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        if self.sums is None:
            return {"loss": 0.0, "terms": {}, "top1": 0.0, "top5": 0.0}
        counts = torch.cat([self.correct, self.correct.new_full((1,), self.images)])
        top1, top5, images, *sums = total(torch.cat([counts.double(), self.sums])).tolist()
        loss, *terms = (value / images for value in sums)
        return {
            "loss": loss,
            "terms": dict(zip(self.names, terms, strict=True)),
            "top1": 100.0 * top1 / images,
            "top5": 100.0 * top5 / images,
        }

    def state(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"names": self.names, "sums": self.sums, "correct": self.correct, "images": self.images}

    def restore(self, state: dict[str, Any]) -> None:
        """From checkpoints."""
        self.names, self.sums = list(state["names"]), state["sums"]
        self.correct, self.images = state["correct"], state["images"]
