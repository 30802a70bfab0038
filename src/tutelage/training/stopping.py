"""What ends a run early: Ctrl-C and SIGTERM, after the current step, and what has overflowed."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.training.distributed import anywhere


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
        raise _lost(f"the loss became {loss}", epoch, step, state)


def check_sound(parts: Iterable[nn.Module], epoch: int, step: int, state: Path) -> None:
    """End a run before it saves what has overflowed; all processes ask at once. Waits for the device.

    A gradient can overflow after the loss it came from was seen to be finite.

    Args:
        parts: What is learnt or remembered. Parameters have to be finite; a buffer may hold infinities, which
            mark what isn't known yet, but nothing that is no number.
        epoch: As for `check_finite`, like the others.
        step: Of the epoch.
        state: File of the last saved state.

    Raises:
        TutelageError: Something is not as it has to be.
    """
    modules = list(parts)
    checks = [value.isfinite().all() for module in modules for value in _floating(module.parameters())]
    checks += [~value.isnan().any() for module in modules for value in _floating(module.buffers())]
    if anywhere(bool(checks) and not torch.stack(checks).all()):
        raise _lost("the weights became infinite or no numbers", epoch, step, state)


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether no value is infinite or not a number."""
    return all(bool(value.isfinite().all()) for value in values)


def _floating(values: Iterable[Tensor]) -> Iterator[Tensor]:
    return (value for value in values if value.is_floating_point())


def _lost(what: str, epoch: int, step: int, state: Path) -> TutelageError:
    kept = f"the last good state is in {state}" if state.exists() else "no state was saved yet"
    return TutelageError(
        f"{what} in epoch {epoch + 1} by step {step}; {kept}; "
        "lower optimiser.lr, set optimiser.clip_grad, or turn runtime.amp off"
    )
