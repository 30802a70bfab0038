"""The teacher's answers on disk, for later runs on the same teacher and images.

A folder for each set of facts lies in ``$TUTELAGE_CACHE`` (by default ``~/.cache/tutelage``), and in it a
file for each epoch that brought new answers. Files are only ever added, each whole and named by its content,
so that runs may share a folder at the same time. Deleting any of them costs only the time to ask again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tutelage.files import cache_folder, write_atomically, write_json

FORMAT = 1
"""Raised when the meaning of a file changes, so that older ones are not found any more."""
ROWS = "rows"


class AnswerFiles:
    """Answers of all runs with the same facts.

    Attributes:
        folder: Where they lie.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        """Args:
        facts: Everything that decides about an answer, as JSON can hold it; of them ``answers`` has the width
            D of each field by its name.
        """
        self.facts = {"format": FORMAT, **facts}
        text = json.dumps(self.facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
        self.folder: Path = cache_folder() / "answers" / hashlib.sha256(text.encode()).hexdigest()[:24]

    def read(self, rows: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Whole and fitting files; others are passed over, since asking again is the answer to them.

        Args:
            rows: How many there are in the table.

        Yields:
            `[n]` int64 rows of the table, and by name what stands there, `[n, D]` each.
        """
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                content = path.read_bytes()
                answers = load(content) if path.name == _name(content) else {}
            except (OSError, SafetensorError):
                continue
            numbers = answers.pop(ROWS, None)
            if numbers is not None and self._fit(numbers, answers, rows):
                yield numbers, answers

    def _fit(self, numbers: Tensor, answers: Mapping[str, Tensor], rows: int) -> bool:
        count = len(numbers) if numbers.ndim == 1 and numbers.dtype == torch.int64 else 0
        return (
            count > 0
            and 0 <= int(numbers.min()) <= int(numbers.max()) < rows
            and {name: tuple(values.shape) for name, values in answers.items()}
            == {name: (count, width) for name, width in self.facts["answers"].items()}
            and all(v.is_floating_point() and bool(v.isfinite().all()) for v in answers.values())
        )

    def write(self, numbers: Tensor, answers: Mapping[str, Tensor]) -> Path:
        """Add a file.

        Args:
            numbers: `[n]` int64 rows of the table.
            answers: By name what stands there, `[n, D]` each, on the CPU.

        Returns:
            The file.

        Raises:
            TutelageError: The disk is full, or the folder can't be written.
        """
        content = save({ROWS: numbers, **answers})
        path = self.folder / _name(content)
        if not (self.folder / "facts.json").exists():
            write_json(self.folder / "facts.json", self.facts)  # for people; the folder's name is their hash
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        return path


def _name(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()[:24]}.safetensors"
