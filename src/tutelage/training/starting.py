"""What a run settles before its first step: its folder and its first facts."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError
from tutelage.files import named_path
from tutelage.recipes import Recipe, dump, resolve
from tutelage.runs.record import WRITTEN, RunFolder
from tutelage.training.build import Parts
from tutelage.training.distributed import restarted
from tutelage.training.evaluate import evaluate as evaluate_network
from tutelage.training.hardware import surroundings
from tutelage.training.loading import image_size
from tutelage.training.networks import network_facts, student_recipes
from tutelage.training.progress import Reporter
from tutelage.training.schedules import warmup_warning

RUNS_FOLDER = Path("runs")
EXPECTED_MARGIN = 0.5
"""Percentage points by which a teacher may miss its noted accuracy before the run warns."""


def claim(out: str | Path | None, recipe: Recipe) -> tuple[Path, bool]:
    """The folder of a run that is to begin, and whether it has already begun there.

    It has where ``torchrun`` started the processes again after one of them failed, and the folder they were
    told to write to holds a run of the same recipe.

    Args:
        out: The folder asked for. None checks ``runs/``, where the run makes its `default_folder` once it
            can begin: one that is refused leaves none behind.
        recipe: Of the run.

    Raises:
        UserError: The folder holds another run, one that nobody restarted, or files that the run would
            overwrite; or its name is empty.
        TutelageError: It can't be written.
    """
    folder = named_path(out) if out is not None else RUNS_FOLDER
    run = RunFolder(folder)
    if restarted() and run.facts_file.exists() and resolve(str(run.recipe)).hash() == recipe.hash():
        return folder, True
    RunFolder.claim(folder, dump(recipe), () if out is None else WRITTEN)
    return folder, False


def default_folder(recipe: Recipe) -> Path:
    """A new folder under ``runs/``: student, method, dataset and seed; see `numbered_folder`."""
    return numbered_folder(f"{recipe.student.name}-{recipe.method['name']}-{recipe.data.name}-s{recipe.seed}")


def numbered_folder(stem: str) -> Path:
    """Make a new folder under ``runs/``, numbered when taken.

    Making it is what takes it: of two runs that begin at the same moment, each gets its own.

    Args:
        stem: Its name without the number.

    Raises:
        TutelageError: It can't be made.
    """
    folder, number = RUNS_FOLDER / stem, 2
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            folder, number = RUNS_FOLDER / f"{stem}-{number}", number + 1
        except OSError as error:
            raise TutelageError(
                f"can't make {folder}: {error.strerror or error}; name another folder with --out"
            ) from error


def starting_facts(recipe: Recipe, parts: Parts, reporter: Reporter) -> dict[str, Any]:
    """What is known before the first step: versions, protocol, fingerprints, the teacher's accuracy now."""
    size = image_size(parts.data)
    say_what_networks_get(parts, size, reporter)
    slow = warmup_warning(recipe.schedule)
    if slow:
        reporter.warn(slow)
    teacher = None
    if parts.nets.teacher is not None and recipe.teacher is not None:
        batches = parts.data.eval_batches("test", recipe.data.eval_batch_size)
        teacher = {
            **network_facts(recipe.teacher, parts.nets.teacher, size),
            "test": evaluate_network(parts.nets.teacher, batches),
            "expected_top1": parts.teacher_facts.get("top1"),
        }
        reporter.say(f"teacher {recipe.teacher.name}: test top-1 {teacher['test']['top1']:.2f}%")
        warning = accuracy_warning("teacher", teacher["test"]["top1"], teacher["expected_top1"])
        if warning:
            reporter.warn(warning)
    return {
        "status": "running",
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "task": recipe.task,
        "method": recipe.method["name"],
        "seed": recipe.seed,
        "recipe_hash": recipe.hash(),
        "protocol": parts.protocol,
        "train_digest": parts.data.digest("train"),
        "normalisation": {"mean": list(parts.normalisation[0]), "std": list(parts.normalisation[1])},
        "student": network_facts(recipe.student, parts.nets.student, size),
        "peers": [
            network_facts(part, net, size)
            for part, net in zip(
                student_recipes(recipe, parts.method)[1:], parts.nets.students[1:], strict=True
            )
        ],
        "teacher": teacher,
        **surroundings(recipe, parts.data.device),
    }


def say_what_networks_get(parts: Parts, size: tuple[int, int], reporter: Reporter) -> None:
    """Say what was done to weights to make them fit, and which network sees images of a size of its own."""
    teacher = [] if parts.nets.teacher is None else [("the teacher", parts.nets.teacher)]
    for role, network in [("the student", parts.nets.student), *teacher]:
        for note in network.notes:
            reporter.say(note)
        height, width = network.received(size)[-2:]
        if (height, width) != size:
            reporter.say(f"{role} gets images of {height}x{width}, resized from {size[0]}x{size[1]}")


def accuracy_warning(role: str, measured: float, expected: float | None) -> str | None:
    """A sentence when the teacher or model is not what its weights promise, else None."""
    if expected is None or abs(measured - expected) <= EXPECTED_MARGIN:
        return None
    return (
        f"the {role} reaches {measured:.2f}% here, but its weights were noted with {expected:.2f}%; "
        "check dataset, normalisation and architecture with 'tutelage doctor'"
    )
