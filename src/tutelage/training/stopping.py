"""Ctrl-C and SIGTERM: asked to stop, a run ends after the current step with its state saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
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
