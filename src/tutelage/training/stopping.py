"""What ends a run early: Ctrl-C and SIGTERM, after the current step, and a loss that is no number."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tutelage.errors import TutelageError


class Interrupted(TutelageError):
    """Ctrl-C or SIGTERM: the state is saved and the run can be resumed."""

    exit_code = 130


class StopSignals:
    """Notes SIGINT and SIGTERM while it listens; a second SIGINT acts at once.

    Attributes:
        came: Whether a stop was asked for.
    """

    def __init__(self) -> None:
        self.came = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals instead of acting on them; outside the main thread the caller handles them."""

        def note(number: int, frame: FrameType | None) -> None:
            self.came = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def check_finite(loss: float, epoch: int, step: int, state: Path) -> None:
    """End a run whose loss is infinite or not a number.

    Args:
        loss: Mean so far.
        epoch: From 0.
        step: Of the epoch.
        state: File of the last saved state, which may not be there yet.

    Raises:
        TutelageError: It is.
    """
    if not math.isfinite(loss):
        kept = f"the last good state is in {state}" if state.exists() else "no state was saved yet"
        raise TutelageError(
            f"the loss became {loss} in epoch {epoch + 1} by step {step}; {kept}; "
            "lower optimiser.lr, set optimiser.clip_grad, or turn runtime.amp off"
        )
