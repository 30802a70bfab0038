"""The state of a run between two steps: written atomically, read without executing anything."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.errors import UserError
from tutelage.files import write_atomically
from tutelage.training.distributed import differing, is_writer, rank, remembered, to_writer
from tutelage.training.meter import Meter

VERSION = 2


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings and containers of them) to ``path``, atomically.

    Raises:
        TutelageError: The disk is full or the folder can't be written; the previous file stays whole.
    """

    def write(temporary: Path) -> None:
        try:
            torch.save({"version": VERSION, **state}, temporary)
        except RuntimeError as error:  # PyTorch reports a full disk this way
            raise OSError(f"{error}".splitlines()[0]) from error

    write_atomically(path, write)


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        UserError: No such file, or it is damaged, or holds more than plain data, or another version.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; the run stopped before its first checkpoint, so start it again")
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged or no checkpoint of this project; start the run again") from error
    version = state.get("version") if isinstance(state, dict) else None
    if version != VERSION:
        raise UserError(f"{path} is of another version ({version}, expected {VERSION}); start the run again")
    return state


def gathered(parts: Mapping[str, nn.Module], generator: torch.Generator, meter: Meter) -> dict[str, Any]:
    """State of what is learnt, remembered, drawn and counted; all processes ask at once.

    Args:
        parts: What is learnt or remembered, by name.
        generator: The method's.
        meter: Of the epoch.

    Returns:
        Each part's state once, and under ``own`` what is each process's own; empty in all but the writer.
    """
    own = to_writer(
        {
            "random": random_state(generator),
            "meter": meter.state(),
            "buffers": {name: differing(remembered(part)) for name, part in parts.items()},
        }
    )
    return {**{name: part.state_dict() for name, part in parts.items()}, "own": own} if is_writer() else {}


def restore(
    state: Mapping[str, Any],
    parts: Mapping[str, nn.Module],
    generator: torch.Generator,
    meter: Meter,
    seed: int,
) -> str | None:
    """Put back what `gathered` gave.

    Args:
        state: With its content.
        parts: As they are to be filled.
        generator: The method's.
        meter: Of the epoch.
        seed: For random numbers that begin afresh.

    Returns:
        The kind of device that the random numbers were drawn on, where it is another one than here and they
        therefore begin afresh; else None.
    """
    own = state["own"][rank()]
    for name, part in parts.items():
        part.load_state_dict({**state[name], **own["buffers"][name]})
    meter.restore(own["meter"])
    return restore_random_state(own["random"], generator, seed)


def random_state(generator: torch.Generator) -> dict[str, Any]:
    """State of all random generators a run uses."""
    kind = generator.device.type
    state = {"device": kind, "torch": torch.get_rng_state(), "method": generator.get_state()}
    if kind == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(generator.device)
    return state


def restore_random_state(state: Mapping[str, Any], generator: torch.Generator, seed: int) -> str | None:
    """Put back what `random_state` gave, or seed anew where it is of another kind of device.

    Args:
        state: Of `random_state`.
        generator: The method's, on the device of the run.
        seed: For the other case.

    Returns:
        The kind of device that the state is of, where it is another one; else None.
    """
    kind: str = state.get("device") or ("cuda" if "cuda" in state else "cpu")
    if kind != generator.device.type:
        torch.manual_seed(seed)
        generator.manual_seed(seed)
        return kind
    torch.set_rng_state(state["torch"].cpu())
    generator.set_state(state["method"].cpu())
    if kind == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), generator.device)
    return None


def seed_at(seed: int, position: Sequence[int]) -> int:
    """A seed for what begins afresh in the middle of a run, another one at each position."""
    digest = hashlib.sha256(f"tutelage resumed {seed} {list(position)}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
