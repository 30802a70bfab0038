"""The state of a run between two steps: written atomically, read without executing anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import UserError
from tutelage.files import write_atomically

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


def random_state(generator: torch.Generator) -> dict[str, Any]:
    """State of all random generators a run uses."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "method": generator.get_state()}
    if generator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(generator.device)
    return state


def restore_random_state(state: dict[str, Any], generator: torch.Generator) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    generator.set_state(state["method"].cpu())
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), generator.device)
