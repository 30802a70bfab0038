"""The demo: on real handwritten digits, what a student gains from a method when labels are few."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.files import check_new_folder, named_path
from tutelage.methods import create_method, method_class
from tutelage.runs import as_dicts, gain, summarise, write_page
from tutelage.runs.tables import Gain, Row, spread
from tutelage.training.distributed import launched
from tutelage.training.hardware import pick_device
from tutelage.training.jobs import distill, mutual, train
from tutelage.training.progress import Reporter
from tutelage.training.starting import numbered_folder

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
    a seed gives the student the same initial weights, images, order, augmentation and number of steps. A
    method without teacher (mutual learning, branches) is shown without one.

    Args:
        out: Folder for the runs and their page; None makes ``runs/demo``, numbered when taken.
        method: A registered method other than "none", with its default settings.
        seeds: Students of each kind, at least 2.
        device: auto, cpu, cuda or cuda:N.
        reporter: Where progress is shown; None shows nothing.

    Returns:
        ``rows`` (see `runs.tables.Row`: the student alone, then distilled), ``gain`` (difference of the mean
        test top-1 in percentage points) and ``gain_standard_error``, ``teacher`` (name, parameters, MACs,
        test top-1, training seconds, training images; None without one), ``note`` (what this shows and what
        not), ``page``, ``out`` and ``seconds``. Plain values that JSON can hold.

    Raises:
        UserError: The method is unknown or "none", there are fewer than 2 seeds or several processes, or the
            device is not there, or the folder is taken.
        TutelageError: A run failed or was interrupted.
    """
    began = time.perf_counter()
    check(method, seeds)
    pick_device(device)  # refuses before there is a folder
    folder = new_folder(out)
    reporter = reporter or Reporter(quiet=True)
    teacher, flags = train_teacher(method, folder / "teacher", device, reporter)
    start = distill if teacher else (mutual if create_method(method).needs.students > 1 else train)
    if create_method(method).needs.student_branches:  # the table is about the students without them
        flags["settings"] = ["data.branch_evaluation=false"]
    runs: dict[str, list[str]] = {"none": [], method: []}
    for seed in range(seeds):
        same: dict[str, Any] = {"seed": seed, "device": device, "reporter": reporter}
        reporter.say(f"student alone, few labels, seed {seed}")
        runs["none"].append(train(STUDENT, out=folder / f"none-s{seed}", **same)["out"])
        reporter.say(f"student with {method}, the same images, seed {seed}")
        taught_run = start(STUDENT, out=folder / f"{method}-s{seed}", method=method, **flags, **same)
        runs[method].append(taught_run["out"])
    alone, taught = summarise([*runs["none"], *runs[method]])
    difference = gain(taught, alone)
    facts = teacher_facts(teacher) if teacher else None
    note = explain(alone, taught, difference, facts, taught_run["protocol"]["train_images"])
    page = write_page(
        folder / "index.html",
        [*runs["none"], *runs[method]],
        title=f"Demo: {taught.student} alone and with {method}",
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
    if method_class(method) is method_class("none"):
        raise UserError("'none' is what the demo compares with; name another (tutelage list methods), say kd")
    if launched() > 1:
        raise UserError("the demo is computed by one process; start it without torchrun")
    if seeds < 2:
        raise UserError(f"the demo shows a spread, which {seeds} seed can't have; give 2 or more")


def train_teacher(
    method: str, out: Path, device: str, reporter: Reporter
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Train the teacher that ``method`` needs.

    Returns:
        The facts of its run and the flags that name it to a student's run; None and no flags for a method
        without teacher.
    """
    if create_method(method).needs.teacher is None:
        return None, {}
    reporter.say("teacher: all training digits")
    how = method_class(method).teacher_method
    teacher = train(TEACHER, out=out, method=how, device=device, reporter=reporter)
    with_branches = out / "student_aux.safetensors"
    weights = with_branches if with_branches.exists() else out / "student.safetensors"
    return teacher, {"teacher": teacher["student"]["name"], "teacher_weights": weights}


def new_folder(out: str | Path | None) -> Path:
    """The folder asked for, or a new ``runs/demo``.

    Raises:
        UserError: ``out`` is a file, holds something already, or is empty as a name.
    """
    if out is None:
        return numbered_folder("demo")
    folder = named_path(out)
    check_new_folder(folder)
    return folder


def teacher_facts(run: dict[str, Any]) -> dict[str, Any]:
    """What the demo tells of its teacher, from the record of the teacher's training."""
    return {
        **{key: run["student"][key] for key in ("name", "parameters", "macs")},
        "top1": run["summary"]["last"]["test"]["top1"],
        "seconds": run["summary"]["training_seconds"],
        "train_images": run["protocol"]["train_images"],
    }


def explain(alone: Row, taught: Row, difference: Gain, teacher: dict[str, Any] | None, images: int) -> str:
    """What the numbers show, and what they don't, in words that fit them.

    Args:
        alone: The student without a teacher.
        taught: The student with the method.
        difference: Between the two.
        teacher: See `teacher_facts`; None without one.
        images: Labelled images that the students see.
    """
    error = difference.standard_error or 0.0
    if abs(difference.mean) <= CLEAR * error:
        finding = "which noise may explain: this run shows no effect of distillation"
    else:
        kind = "gain" if difference.mean > 0 else "loss"
        finding = f"a {kind} that noise over the seeds doesn't explain"
    source = "no teacher is involved, so what is gained comes from these images alone."
    if teacher:
        source = (
            f"their teacher {teacher['name']} ({teacher['parameters']:,} parameters, "
            f"{taught.teacher_top1:.2f}%) has learnt from all {teacher['train_images']} labelled images, so "
            "what it adds includes labels that the student never sees."
        )
    return (
        f"With {images} labelled images, {taught.student} ({taught.parameters:,} parameters) reaches "
        f"{spread(alone.top1, alone.top1_std)}% alone and {spread(taught.top1, taught.top1_std)}% with "
        f"{taught.method} at its defaults (mean ± sample standard deviation of {len(taught.seeds)} "
        f"seeds): {difference.mean:+.2f} points, standard error {error:.2f}, {finding}. Both students see "
        f"the same images for the same epochs; {source} It is one easy dataset, one choice of images"
        f"{' and one teacher' if teacher else ''}: other data, and more labels, will gain something else."
    )
