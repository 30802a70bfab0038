"""A run that dies, for tests of what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tutelage.runs.record import RunFolder
from tutelage.training.loop import Trainer

TIMED = {"seconds", "images_per_second", "teacher_asked"}
"""What the same run may be recorded with differently: what its work cost."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing gets the chance to save."""


@contextmanager
def killed_after(*steps: int, saved: bool = True) -> Iterator[None]:
    """Let every run in the block die when so many steps of all of them together are over.

    Args:
        *steps: At each of which one dies.
        saved: Whether what is saved after a step was saved after this one.
    """
    original, seen = Trainer._after_step, [0]

    def after_step(self: Trainer) -> None:
        seen[0] += 1
        if not saved and seen[0] in steps:
            raise Killed
        original(self)
        if seen[0] in steps:
            raise Killed

    with mock.patch.object(Trainer, "_after_step", after_step):
        yield


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def without_times(folder: Path) -> list[dict[str, Any]]:
    """The epochs' records without `TIMED`."""
    return [{k: v for k, v in line.items() if k not in TIMED} for line in RunFolder(folder).metrics()]
