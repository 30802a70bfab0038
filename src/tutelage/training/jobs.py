"""The jobs behind the commands: each takes plain values, does one thing, returns a dictionary.

`tutelage.train`, `tutelage.distill`, `tutelage.evaluate` and `tutelage.resume` are these functions.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, UserError
from tutelage.methods import create_method, method_names
from tutelage.models.branches import branch_width
from tutelage.models.network import Ask
from tutelage.models.weights import read_state_dict
from tutelage.recipes import Recipe, dump, resolve
from tutelage.runs.page import write_page
from tutelage.runs.record import RunFolder
from tutelage.training.build import Parts, assemble
from tutelage.training.continuing import alone, check_teacher, set_going
from tutelage.training.distributed import (
    Onlooker,
    check_batch,
    check_processes,
    death_told,
    from_writer,
    is_writer,
    open_run,
    processes,
    wait_for_all,
)
from tutelage.training.evaluate import evaluate as evaluate_network
from tutelage.training.flags import resolve_evaluation, resolve_flags
from tutelage.training.hardware import pick_device, place, set_up_torch
from tutelage.training.loading import image_size, load_data
from tutelage.training.loop import Trainer
from tutelage.training.networks import build_network
from tutelage.training.preprocessing import normalisation, sidecar_of
from tutelage.training.progress import Reporter
from tutelage.training.shown import own_wish, shown
from tutelage.training.starting import accuracy_warning, claim, default_folder, starting_facts
from tutelage.training.stopping import Interrupted

IN_SUMMARY = ("epoch", "train", "val", "test", "peers", "ema_test", "ema_val")
"""What the summary repeats of the last epoch's record."""


def distill(
    recipe: str | Recipe | None = None,
    *,
    out: str | Path | None = None,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
    **flags: Any,
) -> dict[str, Any]:
    """Distil a student from a teacher.

    Args:
        recipe: Bundled name, YAML file, or a resolved recipe; None starts from the defaults.
        out: Folder of the run; None makes one under ``runs/``.
        settings: ``key.path=value`` overrides.
        reporter: Where progress is shown; None shows nothing.
        **flags: Keys of `FLAGS`, e.g. ``teacher="resnet56_cifar", teacher_weights="r56.safetensors",
            student="resnet20_cifar", method="kd", data="cifar100", epochs=240``.

    Returns:
        The content of ``run.json`` with ``out`` (the folder) added.

    Raises:
        UserError: The request can't be met.
        TutelageError: The run failed or was interrupted.
    """
    return _start("distill", recipe, out, settings, reporter, flags)


def train(
    recipe: str | Recipe | None = None,
    *,
    out: str | Path | None = None,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
    **flags: Any,
) -> dict[str, Any]:
    """Train one network without a teacher; ``model`` names it. Otherwise as `distill`.

    ``method`` may be one that prepares teachers (``hsakd_teacher``, ``dpcd_teacher``).
    """
    return _start("train", recipe, out, settings, reporter, flags)


def mutual(
    recipe: str | Recipe | None = None,
    *,
    peers: Iterable[str] = (),
    out: str | Path | None = None,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
    **flags: Any,
) -> dict[str, Any]:
    """Train several networks that teach each other, without a teacher; otherwise as `distill`.

    Args:
        recipe: As for `distill`.
        peers: Names of the networks beside ``student``; none makes one more of the student's kind.
        out: As for `distill`.
        settings: As for `distill`.
        reporter: As for `distill`.
        **flags: As for `distill`; ``method`` is ``hssakd`` unless given.

    Raises:
        UserError: The method trains one network alone, or peers are named beside a resolved recipe, which has
            its own; otherwise as for `distill`.
        TutelageError: As for `distill`.
    """
    names = list(peers)
    if flags.get("method") is not None:  # first, as other methods don't know method.networks either
        check_mutual(flags["method"])
    if names:
        listed = ", ".join(f"{{name: {name}}}" for name in names)
        settings = [f"peers=[{listed}]", f"method.networks={len(names) + 1}", *settings]
    if recipe is None and flags.get("method") is None:
        flags["method"] = "hssakd"
    resolved = resolve_flags("distill", recipe, settings, flags)
    check_mutual(resolved.method["name"])
    return _start("distill", resolved, out, (), reporter, {})


def check_mutual(method: str) -> None:
    """Refuse a method that trains one network.

    Raises:
        UserError: It does.
    """
    if create_method(method).needs.students < 2:
        several = [name for name in method_names() if create_method(name).needs.students > 1]
        raise UserError(
            f"method '{method}' trains one network; take one of networks that teach each other "
            f"({', '.join(several)}), or use 'tutelage distill' or 'tutelage train'"
        )


def _start(
    task: str,
    recipe: str | Recipe | None,
    out: str | Path | None,
    settings: Iterable[str],
    reporter: Reporter | None,
    flags: dict[str, Any],
) -> dict[str, Any]:
    resolved = resolve_flags(task, recipe, list(settings), flags)
    if task == "train" and resolved.teacher is not None:
        raise UserError("train takes no teacher; use 'tutelage distill', or drop the teacher from the recipe")
    with processes(pick_device(resolved.runtime.device)):
        check_batch(resolved.data.batch_size)
        folder, begun = from_writer(lambda: claim(out, resolved))  # refuses before any work is done
        parts = assemble(resolved)
        reporter = speaker(reporter)
        if begun:
            reporter.say(f"going on with {folder} after a restart")
            with alone(folder):
                return _go_on(resolved, parts, open_run(folder), reporter)
        facts = starting_facts(resolved, parts, reporter)
        if out is None:
            folder = from_writer(lambda: default_folder(resolved))
        run = RunFolder.create(folder, dump(resolved), facts) if is_writer() else Onlooker(folder)
        with alone(folder):
            return _fit(resolved, parts, run, reporter)


def speaker(reporter: Reporter | None) -> Reporter:
    """Where progress is shown: by one process alone."""
    return reporter if reporter is not None and is_writer() else Reporter(quiet=True)


def resume(run: str | Path, *, device: str | None = None, reporter: Reporter | None = None) -> dict[str, Any]:
    """Go on with an interrupted run; on CPU the result is bit-identical to an uninterrupted one.

    Args:
        run: The run's folder.
        device: Another device than the recipe's, or None.
        reporter: Where progress is shown; None shows nothing.

    Raises:
        UserError: No run there, or no usable state; another process is at it; it began with another teacher,
            or by another number of processes.
        TutelageError: The run failed or was interrupted again.
    """
    recipe = resolve(str(RunFolder.open(Path(run)).recipe), {"runtime.device": device})
    with processes(pick_device(recipe.runtime.device)):
        folder = open_run(Path(run))
        check_processes(folder.facts().get("protocol", {}).get("processes", 1), folder.path)
        with alone(folder.path):
            return _go_on(recipe, assemble(recipe), folder, speaker(reporter))


def _go_on(recipe: Recipe, parts: Parts, run: RunFolder, reporter: Reporter) -> dict[str, Any]:
    check_teacher(run, recipe, parts.nets)
    return _fit(recipe, parts, run, reporter)


def _fit(recipe: Recipe, parts: Parts, run: RunFolder, reporter: Reporter) -> dict[str, Any]:
    sidecar = {
        "num_classes": parts.data.info.num_classes,
        "dataset": recipe.data.name,
        "mean": list(parts.normalisation[0]),
        "std": list(parts.normalisation[1]),
        **shown(recipe, parts.data),
        "method": recipe.method["name"],
        "recipe_hash": recipe.hash(),
    }
    trainer = Trainer(recipe, parts.nets, parts.method, parts.data, run, reporter, sidecar)
    if from_writer(run.state.exists):  # else the run stopped before its first checkpoint and begins again
        trainer.load()
        if trainer.over and from_writer(lambda: run.facts()["status"]) == "finished":
            return {"out": str(run.path), **run.facts()}  # nothing is trained, so nothing new is recorded
    else:
        run.keep_metrics(0)
    set_going(run, recipe, parts.data.device, (trainer.phase, trainer.epoch, trainer.step))
    began = time.perf_counter()
    before = trainer.seconds + trainer.spent
    try:
        with death_told():
            last = trainer.fit()
    except TutelageError as error:
        run.update(status="interrupted" if isinstance(error, Interrupted) else "failed", reason=str(error))
        raise
    except Exception as error:  # a defect, or a device out of memory
        run.update(status="failed", reason=f"{type(error).__name__}: {error}")
        raise
    run.update(
        status="finished",
        reason=None,
        compiled=run.facts().get("compiled", False),
        summary={
            "last": {key: last[key] for key in IN_SUMMARY if key in last},
            "best": {"note": f"best epoch by {recipe.selection} on {trainer.best['by']}", **trainer.best},
            "training_seconds": round(trainer.seconds, 1),
            "wall_seconds": round(before + time.perf_counter() - began, 1),
            "images_per_second": last["images_per_second"],
        },
    )
    if is_writer():
        write_page(run.path / "index.html", [run.path])
    wait_for_all()
    return {"out": str(run.path), **run.facts()}


def evaluate(
    model: str | None,
    *,
    weights: str | Path | None = None,
    data: str | None = None,
    data_dir: str | Path | None = None,
    download: bool | None = None,
    pretrained: bool | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Loss, top-1 and top-5 (percent) of ``model`` on the dataset's test images, in float32.

    Images get the size and the normalisation noted beside the weights, else the dataset's (or those of
    ``student.image_size``, ``data.mean`` and ``data.std``).
    Weights with branches (``student_aux.safetensors``, HSAKD's and DPCD's files) have these measured too,
    HSAKD's over all rotations; ``data.branch_evaluation=false`` leaves them out.

    Args:
        model: Name of the network.
        weights: Its weights.
        data: Name of the dataset; None takes the recipe's default.
        data_dir: Folder that holds it.
        download: Fetch it when it is not there.
        pretrained: Measure timm's pretrained weights, where no others are given.
        device: Where to compute.
        batch_size: Images at a time; changes no result.
        settings: ``key.path=value``, such as ``data.image_size=224``.
        reporter: Where a warning is shown; None shows nothing.

    Returns:
        The measurements (see `training.evaluate.evaluate`), ``expected_top1`` (noted beside the weights, or
        None), ``warning`` (a sentence when the two differ, or None), the normalisation and the device.

    Raises:
        UserError: Unknown names, unreadable data or weights, other class count, a setting of training.
    """
    flags = {
        "model": model,
        "weights": None if weights is None else str(weights),
        "data": data,
        "data_dir": None if data_dir is None else str(data_dir),
        "download": download,
        "pretrained": pretrained,
        "device": device,
    }
    size = [] if batch_size is None else [f"data.eval_batch_size={batch_size}"]
    recipe = resolve_evaluation([*size, *settings], flags)
    name = recipe.student.name
    if not recipe.student.has_weights:
        raise UserError(
            f"'{name}' has no weights, so there is nothing to evaluate; give --weights FILE or --pretrained"
        )
    chosen = pick_device(recipe.runtime.device)
    set_up_torch(recipe)
    with processes(chosen):
        loaded = load_data(recipe, chosen)
        given = normalisation(recipe)
        ask = branches_of(recipe)
        network = build_network(recipe.student, loaded, given, ask, "frozen", "model", recipe.data)
        place(network, chosen, recipe.runtime.channels_last)
        batches = loaded.eval_batches("test", recipe.data.eval_batch_size)
        result = evaluate_network(network, batches, ask.branches // loaded.info.num_classes)
        writing = is_writer()
    came = {"mean": given[0], "std": given[1], "image_size": image_size(loaded)}
    seen = came | own_wish(network.preprocess)
    expected = sidecar_of(recipe.student).get("top1")
    warning = accuracy_warning("model", result["top1"], expected)
    if warning and reporter is not None and writing:
        reporter.warn(warning)
    return {
        "model": name,
        "data": recipe.data.name,
        **{key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()},
        "expected_top1": expected,
        "warning": warning,
        "mean": list(seen["mean"]),
        "std": list(seen["std"]),
        "image_size": list(seen["image_size"]),
        "notes": list(network.notes),
        "device": str(chosen),
    }


def branches_of(recipe: Recipe) -> Ask:
    """What to ask of a network so that the branches in its weights answer."""
    if recipe.student.weights is None or not recipe.data.branch_evaluation:
        return Ask()
    found = read_state_dict(Path(recipe.student.weights), prefix=recipe.student.prefix)
    return Ask(branches=branch_width(found.branches))
