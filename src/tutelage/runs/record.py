"""The record of a run on disk.

A run is a folder:

| file | holds |
| --- | --- |
| `recipe.yaml` | the resolved recipe; running it repeats the run |
| `run.json` | protocol, fingerprints, versions, hardware, the teacher's accuracy, summary |
| `metrics.jsonl` | one line an epoch |
| `student.safetensors`, `student_best.safetensors` | last and best weights, each with a JSON sidecar |
| `student_ema.safetensors`, `student_ema_best.safetensors` | the moving average's, where one is kept |
| `state.pt` | everything needed to go on after a stop |
| `index.html` | the page to look at |
| `events.out.tfevents.*` | TensorBoard |
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, UserError
from tutelage.files import write_atomically, write_json, write_text

FORMAT = 1
WRITTEN = (
    "recipe.yaml",
    "metrics.jsonl",
    "state.pt",
    "index.html",
    *(f"{network}{kind}" for network in ("student*", "peer*") for kind in (".safetensors", ".json")),
)
"""Names that a run writes beside ``run.json``; TensorBoard's files have new names each time."""


class RunFolder:
    """One run's folder: created new or opened again."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.facts_file = self.path / "run.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.state = self.path / "state.pt"

    @classmethod
    def create(cls, path: Path, recipe_text: str, facts: dict[str, Any]) -> RunFolder:
        """Start a new run in ``path``.

        Raises:
            UserError: See `claim`.
            TutelageError: The folder can't be written.
        """
        run = cls.claim(path, recipe_text)
        write_text(run.recipe, recipe_text)
        write_json(run.facts_file, {"format": FORMAT, **facts})
        return run

    @classmethod
    def claim(cls, path: Path, recipe_text: str = "", written: Sequence[str] = WRITTEN) -> RunFolder:
        """Check that a new run can be written to ``path``, before any work is done for it.

        The folder may exist, empty or with other files in it, which stay as they are.

        Args:
            path: The folder.
            recipe_text: What ``recipe.yaml`` is to hold. One that holds just this loses nothing and may be
                there: a run that was killed between its first two files leaves it, and so does a user who
                repeats a run in the folder of its recipe.
            written: Patterns of the names of the files that are going to be written.

        Raises:
            UserError: ``path`` already holds a run or a file that the run would overwrite, or is a file.
            TutelageError: A folder above it is none, or can't be written.
        """
        run = cls(path)
        if run.facts_file.exists():
            raise UserError(
                f"{path} already holds a run; continue with 'tutelage resume {path}' or choose another --out"
            )
        if run.path.exists() and not run.path.is_dir():
            raise UserError(f"{path} is a file; choose a folder for --out")
        threatened = run._overwritten(recipe_text, written)
        if threatened:
            raise UserError(
                f"{path} holds {', '.join(threatened)}, which would be overwritten; choose another --out, or "
                "move what is there"
            )
        above = next(folder for folder in (run.path, *run.path.absolute().parents) if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            reason = "isn't writable" if above.is_dir() else "is no folder"
            raise TutelageError(f"can't write {path}: {above} {reason}; choose another --out")
        return run

    def _overwritten(self, recipe_text: str, written: Sequence[str]) -> list[str]:
        """Names of the files in the folder that would be lost, sorted."""
        if not self.path.is_dir():
            return []
        names = [file.name for file in self.path.iterdir() if any(fnmatch(file.name, w) for w in written)]
        if self.recipe.name in names and self._recipe_is(recipe_text):
            names.remove(self.recipe.name)
        return sorted(names)

    def _recipe_is(self, text: str) -> bool:
        return self.recipe.is_file() and self.recipe.read_bytes() == text.encode()

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run.

        Raises:
            UserError: ``path`` holds no run.
        """
        run = cls(path)
        if not run.facts_file.is_file() or not run.recipe.is_file():
            raise UserError(f"{path} holds no run (no run.json and recipe.yaml there); give a run's folder")
        return run

    def facts(self) -> dict[str, Any]:
        """Content of ``run.json``.

        Raises:
            UserError: The file is damaged.
        """
        try:
            content = json.loads(self.facts_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.facts_file} can't be read as JSON; restore it or start a new run"
            ) from error
        return dict(content)

    def update(self, **changes: Any) -> None:
        """Merge ``changes`` into ``run.json``, atomically."""
        write_json(self.facts_file, {**self.facts(), **changes})

    def append(self, metrics: dict[str, Any]) -> None:
        """Add one epoch's line to ``metrics.jsonl`` and sync it."""
        try:
            with open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TutelageError(
                f"can't write {self.metrics_file}: {error.strerror}; free space, then resume"
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """The epochs written so far; a half-written last line (after a crash) is left out."""
        if not self.metrics_file.is_file():
            return []
        lines = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines

    def keep_metrics(self, count: int) -> None:
        """Cut ``metrics.jsonl`` back to its first ``count`` lines, atomically (used when resuming)."""
        lines = self.metrics()[:count]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self.metrics_file, lambda path: path.write_text(text, encoding="utf-8"))
