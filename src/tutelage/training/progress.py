"""What a run shows while it works: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tutelage.methods import MAIN_PHASE


class Reporter:
    """Shows progress on stderr, so that stdout stays for results. ``quiet`` shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print one line that stands out."""
        self.console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def start(self, total_steps: int, done: int) -> None:
        """Begin a run of ``total_steps`` of which ``done`` are behind."""
        if self.console.is_terminal and not self.console.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=done)
            self._bar.start()

    def step(self, done: int, epoch: int, epochs: int, loss: float, top1: float, speed: float) -> None:
        """Refresh the live line."""
        if self._bar is not None and self._task is not None:
            text = f"epoch {epoch + 1}/{epochs}  loss {loss:.3f}  train {top1:.1f}%  {speed:,.0f} img/s"
            self._bar.update(self._task, completed=done, description=text)

    def epoch(self, record: dict[str, Any], epochs: int, seconds_left: float) -> None:
        """Print the finished epoch as one line."""
        train = record["train"]
        name = "epoch" if record["phase"] == MAIN_PHASE else f"{record['phase']}: epoch"
        parts = [
            f"{name} {record['epoch'] + 1}/{epochs}",
            f"loss {train['loss']:.4f}",
            f"train {train['top1']:.2f}%",
        ]
        for split in ("val", "test"):
            if record.get(split):
                parts.append(f"{split} {record[split]['top1']:.2f}%")
        parts += [
            f"lr {record['lr']:.3g}",
            f"{record['images_per_second']:,.0f} img/s",
            f"{clock(seconds_left)} left",
        ]
        self.say("  ".join(parts))

    def stop(self) -> None:
        """Remove the live line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Ticker:
    """True at most once per ``seconds``: limits how often counters are read from the device."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time again."""
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True


def clock(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``."""
    whole = max(round(seconds), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
