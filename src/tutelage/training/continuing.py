"""Going on with a run: whether it is still the same, nobody else does, and what changed since."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from tutelage.errors import UserError
from tutelage.files import held, remove_leftovers
from tutelage.methods import Networks
from tutelage.models.fingerprint import weights_hash
from tutelage.recipes import Recipe
from tutelage.runs.record import RunFolder
from tutelage.training.distributed import from_writer, is_writer
from tutelage.training.hardware import surroundings

LOCK = ".lock"
OWN = re.compile(
    r"recipe\.yaml|run\.json|metrics\.jsonl|state\.pt|(student|peer\d+)(_ema)?(_best)?(_aux)?\.(safetensors|json)"
)
"""Files that a run writes while it trains."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Train in a run's folder while no other run does; several processes of one run are one.

    Raises:
        UserError: Another run is at it.
    """
    sentence = f"{folder} is being trained by another process; wait for it, or stop it first"
    with ExitStack() as stack:
        from_writer(lambda: stack.enter_context(held(folder / LOCK, sentence)))
        yield


def check_teacher(run: RunFolder, recipe: Recipe, nets: Networks) -> None:
    """Refuse a teacher that is another one than the run began with.

    Raises:
        UserError: Its weights are.
    """
    noted = run.facts().get("teacher") or {}
    if nets.teacher is None or recipe.teacher is None:
        return
    # Branches are part of the file, but not of the model; the file's hash differs where keys are renamed.
    if nets.teacher.branches is not None:
        before, now = noted.get("origin_hash"), nets.teacher.origin
    else:
        before, now = noted.get("weights_hash"), weights_hash(nets.teacher.model)
    if before not in (None, now):
        source = recipe.teacher.weights or f"the pretrained weights of {recipe.teacher.name}"
        raise UserError(
            f"the teacher's weights ({source}) are not those that the run in {run.path} began with; put them "
            "back, or start a new run"
        )


def set_going(run: RunFolder, recipe: Recipe, device: torch.device, position: Sequence[int]) -> None:
    """Note that the run works, and on what, where that is not what it was on before; clean up its folder.

    ``resumed`` in the record lists where (phase, epoch, step) the run went on on other hardware, with another
    precision or with other versions, and with which; what it began with stays where it is.

    Args:
        run: Its folder, in which it is `alone`.
        recipe: Of the run.
        device: That it works on now.
        position: Phase, epoch and step that it goes on from.
    """
    facts, now = run.facts(), surroundings(recipe, device)
    resumed = facts.get("resumed", [])
    last = resumed[-1] if resumed else facts
    changes = {}
    if any(last.get(name) != value for name, value in now.items()):
        where = dict(zip(("phase", "epoch", "step"), position, strict=True))
        changes = {"resumed": [*resumed, where | now]}
    run.update(status="running", reason=None, **changes)
    if is_writer():
        remove_leftovers(run.path, OWN)
