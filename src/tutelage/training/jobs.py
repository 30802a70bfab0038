"""The jobs behind the commands: each takes plain values, does one thing, returns a dictionary.

`tutelage.train`, `tutelage.distill`, `tutelage.evaluate` and `tutelage.resume` are these functions.
"""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import tutelage
from tutelage.errors import TutelageError, UserError
from tutelage.models.branches import branch_width
from tutelage.models.network import Ask
from tutelage.models.weights import read_state_dict
from tutelage.recipes import Recipe, dump, resolve
from tutelage.runs.page import write_page
from tutelage.runs.record import RunFolder
from tutelage.training.build import (
    Parts,
    assemble,
    build_network,
    image_size,
    load_data,
    network_facts,
    normalisation,
    pick_device,
    place,
    set_up_torch,
    sidecar_of,
    student_recipes,
)
from tutelage.training.distributed import (
    Onlooker,
    check_batch,
    check_processes,
    death_told,
    from_writer,
    is_writer,
    open_run,
    processes,
    restarted,
    wait_for_all,
    world,
)
from tutelage.training.evaluate import evaluate as evaluate_network
from tutelage.training.loop import Interrupted, Trainer, amp_type
from tutelage.training.progress import Reporter

FLAGS = {
    "model": "student.name",
    "student": "student.name",
    "teacher": "teacher.name",
    "weights": "student.weights",
    "teacher_weights": "teacher.weights",
    "method": "method.name",
    "data": "data.name",
    "data_dir": "data.dir",
    "download": "data.download",
    "few_ratio": "data.few_ratio",
    "val_fraction": "data.val_fraction",
    "epochs": "schedule.epochs",
    "batch_size": "data.batch_size",
    "seed": "seed",
    "device": "runtime.device",
}
"""Flag (and keyword) -> the recipe key it sets."""

IN_SUMMARY = ("epoch", "train", "val", "test", "peers", "ema_test")
"""What the summary repeats of the last epoch's record."""
RUNS_FOLDER = Path("runs")
EXPECTED_MARGIN = 0.5
"""Percentage points by which a teacher may miss its noted accuracy before the run warns."""


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
    """
    names = list(peers)
    if names and not isinstance(recipe, Recipe):
        listed = ", ".join(f"{{name: {name}}}" for name in names)
        settings = [f"peers=[{listed}]", f"method.networks={len(names) + 1}", *settings]
    if recipe is None and flags.get("method") is None:
        flags["method"] = "hssakd"
    return _start("distill", recipe, out, settings, reporter, flags)


def resolve_flags(
    task: str | None, recipe: str | Recipe | None, settings: Iterable[str], flags: dict[str, Any]
) -> Recipe:
    """The recipe that flags and settings describe.

    Args:
        task: "train" or "distill"; None leaves it to the recipe.
        recipe: Bundled name, YAML file, resolved recipe, or None for the defaults.
        settings: ``key.path=value`` overrides.
        flags: Keys of `FLAGS`; a value of None counts as not given.

    Raises:
        UserError: Unknown flag or key, or no network named.
    """
    flags = {name: value for name, value in flags.items() if value is not None}
    settings = list(settings)
    if isinstance(recipe, Recipe):
        if flags or settings:
            raise UserError("a resolved recipe takes no further flags; change it before resolving")
        return recipe
    unknown = set(flags) - set(FLAGS)
    if unknown:
        raise UserError(f"there is no flag '{min(unknown)}' (known: {', '.join(FLAGS)})")
    if "model" in flags and "student" in flags:
        raise UserError("--model and --student both name the network to train; give one of them")
    dotted = {FLAGS[n]: str(value) if isinstance(value, Path) else value for n, value in flags.items()}
    if recipe is None:
        if "student.name" not in dotted and not any(text.startswith("student") for text in settings):
            what = "--model NAME" if task == "train" else "--student NAME"
            raise UserError(f"no network is named; give {what} (tutelage list models) or --recipe")
        dotted.setdefault("method.name", "none" if task == "train" else "kd")
    return resolve(recipe, {"task": task, **dotted}, settings)


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
            return _fit(resolved, parts, open_run(folder), reporter)
        facts = starting_facts(resolved, parts, reporter)
        run = RunFolder.create(folder, dump(resolved), facts) if is_writer() else Onlooker(folder)
        return _fit(resolved, parts, run, reporter)


def claim(out: str | Path | None, recipe: Recipe) -> tuple[Path, bool]:
    """The folder of a run that is to begin, and whether it has already begun there.

    It has where ``torchrun`` started the processes again after one of them failed, and the folder they were
    told to write to holds a run of the same recipe.

    Raises:
        UserError: The folder holds another run, or one that nobody restarted.
        TutelageError: It can't be written.
    """
    folder = Path(out) if out is not None else default_folder(recipe)
    run = RunFolder(folder)
    if restarted() and run.facts_file.exists() and resolve(str(run.recipe)).hash() == recipe.hash():
        return folder, True
    RunFolder.claim(folder)
    return folder, False


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
        UserError: No run there, or no usable state, or begun by another number of processes.
        TutelageError: The run failed or was interrupted again.
    """
    recipe = resolve(str(RunFolder.open(Path(run)).recipe), {"runtime.device": device})
    with processes(pick_device(recipe.runtime.device)):
        folder = open_run(Path(run))
        check_processes(folder.facts().get("protocol", {}).get("processes", 1), folder.path)
        return _fit(recipe, assemble(recipe), folder, speaker(reporter))


def _fit(recipe: Recipe, parts: Parts, run: RunFolder, reporter: Reporter) -> dict[str, Any]:
    sidecar = {
        "num_classes": parts.data.info.num_classes,
        "dataset": recipe.data.name,
        "mean": list(parts.normalisation[0]),
        "std": list(parts.normalisation[1]),
        "method": recipe.method["name"],
        "recipe_hash": recipe.hash(),
    }
    trainer = Trainer(recipe, parts.nets, parts.method, parts.data, run, reporter, sidecar)
    if from_writer(run.state.exists):  # else the run stopped before its first checkpoint and begins again
        trainer.load()
    else:
        run.keep_metrics(0)
    began = time.perf_counter()
    before = trainer.seconds
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
        compiled=trainer.compiled and trainer.compile_note is None,
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


def starting_facts(recipe: Recipe, parts: Parts, reporter: Reporter) -> dict[str, Any]:
    """What is known before the first step: versions, protocol, fingerprints, the teacher's accuracy now."""
    size = image_size(parts.data)
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
        "normalisation": {"mean": list(parts.normalisation[0]), "std": list(parts.normalisation[1])},
        "student": network_facts(recipe.student, parts.nets.student, size),
        "peers": [
            network_facts(part, net, size)
            for part, net in zip(
                student_recipes(recipe, parts.method)[1:], parts.nets.students[1:], strict=True
            )
        ],
        "teacher": teacher,
        "hardware": hardware(parts.data.device),
        "amp": str(amp_type(recipe, parts.data.device) or "float32").removeprefix("torch."),
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm")}
        | {"tutelage": tutelage.__version__, "python": platform.python_version()},
    }


def accuracy_warning(role: str, measured: float, expected: float | None) -> str | None:
    """A sentence when the teacher or model is not what its weights promise, else None."""
    if expected is None or abs(measured - expected) <= EXPECTED_MARGIN:
        return None
    return (
        f"the {role} reaches {measured:.2f}% here, but its weights were noted with {expected:.2f}%; "
        "check dataset, normalisation and architecture with 'tutelage doctor'"
    )


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run computes on."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "count": world()}
    together = {"processes": world()} if world() > 1 else {}
    return {"device": f"cpu ({platform.machine()})", "threads": torch.get_num_threads(), **together}


def default_folder(recipe: Recipe) -> Path:
    """A new folder name under ``runs/``: student, method, dataset and seed, numbered when taken."""
    stem = f"{recipe.student.name}-{recipe.method['name']}-{recipe.data.name}-s{recipe.seed}"
    folder, number = RUNS_FOLDER / stem, 2
    while folder.exists():
        folder, number = RUNS_FOLDER / f"{stem}-{number}", number + 1
    return folder


def evaluate(
    model: str | None,
    *,
    weights: str | Path | None = None,
    data: str | None = None,
    data_dir: str | Path | None = None,
    download: bool | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Loss, top-1 and top-5 (percent) of ``model`` on the dataset's test images, in float32.

    Images get the normalisation noted beside the weights, else the dataset's (or ``data.mean``/``data.std``).
    Weights with branches (``student_aux.safetensors``, HSAKD's and DPCD's files) have these measured too,
    HSAKD's over all rotations; ``data.branch_evaluation=false`` leaves them out.

    Args:
        model: Name of the network.
        weights: Its weights; may be missing with ``student.args.pretrained=true`` in ``settings``.
        data: Name of the dataset; None takes the recipe's default.
        data_dir: Folder that holds it.
        download: Fetch it when it is not there.
        device: Where to compute.
        batch_size: Images at a time; changes no result.
        settings: ``key.path=value`` overrides of the recipe.
        reporter: Where a warning is shown; None shows nothing.

    Returns:
        The measurements (see `training.evaluate.evaluate`), ``expected_top1`` (noted beside the weights, or
        None), ``warning`` (a sentence when the two differ, or None), the normalisation and the device.

    Raises:
        UserError: Unknown names, unreadable data or weights, other class count.
    """
    flags = {
        "model": model,
        "weights": None if weights is None else str(weights),
        "data": data,
        "data_dir": None if data_dir is None else str(data_dir),
        "download": download,
        "device": device,
    }
    size = [] if batch_size is None else [f"data.eval_batch_size={batch_size}"]
    recipe = resolve_flags("train", None, [*size, *settings], flags)
    name = recipe.student.name
    if recipe.student.weights is None and not recipe.student.args.get("pretrained", False):
        raise UserError(f"'{name}' has no weights, so there is nothing to evaluate; give --weights FILE")
    chosen = pick_device(recipe.runtime.device)
    set_up_torch(recipe)
    with processes(chosen):
        loaded = load_data(recipe, chosen)
        given = normalisation(recipe)
        ask = branches_of(recipe)
        network = build_network(recipe.student, loaded, given, ask, "frozen", "model")
        place(network, chosen, recipe.runtime.channels_last)
        batches = loaded.eval_batches("test", recipe.data.eval_batch_size)
        result = evaluate_network(network, batches, ask.branches // loaded.info.num_classes)
        writing = is_writer()
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
        "mean": list(given[0]),
        "std": list(given[1]),
        "device": str(chosen),
    }


def branches_of(recipe: Recipe) -> Ask:
    """What to ask of a network so that the branches in its weights answer."""
    if recipe.student.weights is None or not recipe.data.branch_evaluation:
        return Ask()
    found = read_state_dict(Path(recipe.student.weights), prefix=recipe.student.prefix)
    return Ask(branches=branch_width(found.branches))
