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
        facts: Everything that decides about an answer, as JSON can hold it.
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
        shapes: dict[str, Any] | None = None
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                answers = load(path.read_bytes())
            except (OSError, SafetensorError):
                continue
            numbers = answers.pop(ROWS, torch.empty(0))
            found = {name: (values.shape[1:], values.dtype) for name, values in answers.items()}
            whole = (
                numbers.dtype == torch.int64
                and numbers.ndim == 1
                and len(numbers) > 0
                and 0 <= int(numbers.min()) <= int(numbers.max()) < rows
                and sorted(answers) == sorted(self.facts["answers"])
                and all(v.ndim == 2 and len(v) == len(numbers) for v in answers.values())
                and all(bool(torch.isfinite(v).all()) for v in answers.values())
                and shapes in (None, found)
            )
            if whole:
                shapes = found
                yield numbers, answers

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
        path = self.folder / f"{hashlib.sha256(content).hexdigest()[:24]}.safetensors"
        if not (self.folder / "facts.json").exists():
            write_json(self.folder / "facts.json", self.facts)  # for people; the folder's name is their hash
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        return path
