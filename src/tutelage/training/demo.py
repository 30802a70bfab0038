"""The demo: on real handwritten digits, what a student gains from a teacher when labels are few."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.methods import create_method
from tutelage.runs import as_dicts, gain, summarise, write_page
from tutelage.runs.tables import Gain, Row, spread
from tutelage.training.jobs import RUNS_FOLDER, distill, train
from tutelage.training.progress import Reporter

TEACHER, STUDENT = "demo/teacher", "demo/student"
"""The bundled recipes."""
CLEAR = 3.0
"""Standard errors from zero at which a difference is called more than noise: three seeds need so many."""


def demo(
    out: str | Path | None = None,
    *,
    method: str = "kd",
    seeds: int = 3,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train a teacher, then a small student alone and the same student distilled, over several seeds.

    The teacher learns from all training digits, the student from a few of each class. Alone or distilled,
    a seed gives the student the same initial weights, images, order, augmentation and number of steps.

    Args:
        out: Folder for the runs and their page; None makes ``runs/demo``, numbered when taken.
        method: A registered method whose teacher is a plain network, with its default settings.
        seeds: Students of each kind, at least 2.
        device: auto, cpu, cuda or cuda:N.
        reporter: Where progress is shown; None shows nothing.

    Returns:
        ``rows`` (see `runs.tables.Row`: the student alone, then distilled), ``gain`` (difference of the mean
        test top-1 in percentage points) and ``gain_standard_error``, ``teacher`` (name, parameters, MACs,
        test top-1, training seconds, training images), ``note`` (what this shows and what not), ``page``,
        ``out`` and ``seconds``. Plain values that JSON can hold.

    Raises:
        UserError: The method is unknown, has no teacher or needs one with branches, there are fewer than 2
            seeds, or the folder is taken.
        TutelageError: A run failed or was interrupted.
    """
    began = time.perf_counter()
    check(method, seeds)
    folder = new_folder(out)
    reporter = reporter or Reporter(quiet=True)
    reporter.say("teacher: all training digits")
    teacher = train(TEACHER, out=folder / "teacher", device=device, reporter=reporter)
    weights = {
        "teacher": teacher["student"]["name"],
        "teacher_weights": str(folder / "teacher" / "student.safetensors"),
    }
    runs: dict[str, list[str]] = {"none": [], method: []}
    for seed in range(seeds):
        same: dict[str, Any] = {"seed": seed, "device": device, "reporter": reporter}
        reporter.say(f"student alone, few labels, seed {seed}")
        runs["none"].append(train(STUDENT, out=folder / f"none-s{seed}", **same)["out"])
        reporter.say(f"student with its teacher ({method}), the same images, seed {seed}")
        distilled = distill(STUDENT, out=folder / f"{method}-s{seed}", method=method, **weights, **same)
        runs[method].append(distilled["out"])
    alone, taught = summarise([*runs["none"], *runs[method]])
    difference = gain(taught, alone)
    facts = teacher_facts(teacher)
    note = explain(alone, taught, difference, facts, distilled["protocol"]["train_images"])
    page = write_page(
        folder / "index.html",
        [*runs["none"], *runs[method]],
        title=f"Demo: {taught.student} alone and distilled with {method}",
        note=note,
    )
    return {
        "rows": as_dicts([alone, taught]),
        "gain": difference.mean,
        "gain_standard_error": difference.standard_error,
        "teacher": facts,
        "note": note,
        "page": str(page),
        "out": str(folder),
        "seconds": round(time.perf_counter() - began, 1),
    }


def check(method: str, seeds: int) -> None:
    """Refuse what the demo can't show.

    Raises:
        UserError: See `demo`.
    """
    needs = create_method(method).needs
    if needs.teacher is None:
        raise UserError(f"method '{method}' has no teacher, so the demo can't show what one brings; try kd")
    if needs.teacher_branches:
        raise UserError(
            f"method '{method}' needs a teacher with trained branches, and the demo's is a plain one; try kd"
        )
    if seeds < 2:
        raise UserError(f"the demo shows a spread, which {seeds} seed can't have; give 2 or more")


def new_folder(out: str | Path | None) -> Path:
    """The folder asked for, or a new ``runs/demo``.

    Raises:
        UserError: ``out`` is a file or holds something already.
    """
    if out is not None:
        folder = Path(out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is taken; choose an empty or new folder for --out")
        return folder
    folder, number = RUNS_FOLDER / "demo", 2
    while folder.exists():
        folder, number = RUNS_FOLDER / f"demo-{number}", number + 1
    return folder


def teacher_facts(run: dict[str, Any]) -> dict[str, Any]:
    """What the demo tells of its teacher, from the record of the teacher's training."""
    return {
        **{key: run["student"][key] for key in ("name", "parameters", "macs")},
        "top1": run["summary"]["last"]["test"]["top1"],
        "seconds": run["summary"]["training_seconds"],
        "train_images": run["protocol"]["train_images"],
    }


def explain(alone: Row, taught: Row, difference: Gain, teacher: dict[str, Any], images: int) -> str:
    """What the numbers show, and what they don't, in words that fit them.

    Args:
        alone: The student without a teacher.
        taught: The student distilled.
        difference: Between the two.
        teacher: See `teacher_facts`.
        images: Labelled images that the students see.
    """
    error = difference.standard_error or 0.0
    if abs(difference.mean) <= CLEAR * error:
        finding = "which noise may explain: this run shows no effect of distillation"
    else:
        kind = "gain" if difference.mean > 0 else "loss"
        finding = f"a {kind} that noise over the seeds doesn't explain"
    return (
        f"With {images} labelled images, {taught.student} ({taught.parameters:,} parameters) reaches "
        f"{spread(alone.top1, alone.top1_std)}% alone and {spread(taught.top1, taught.top1_std)}% distilled "
        f"with {taught.method} at its defaults (mean ± sample standard deviation of {len(taught.seeds)} "
        f"seeds): {difference.mean:+.2f} points, standard error {error:.2f}, {finding}. Both students see "
        f"the same images for the same steps; their teacher {teacher['name']} "
        f"({teacher['parameters']:,} parameters, {taught.teacher_top1:.2f}%) has learnt from all "
        f"{teacher['train_images']} labelled images, so what it adds includes labels that the student never "
        "sees. It is one easy dataset, one choice of images and one teacher: other data, and more labels, "
        "will gain something else."
    )
