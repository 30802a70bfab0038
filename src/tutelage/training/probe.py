"""Linear probes: how good a classifier a frozen network's features make on other data."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from tutelage.data import dataset_info
from tutelage.errors import UserError
from tutelage.files import named_path, write_json
from tutelage.models.network import check_input
from tutelage.models.network import probe as probe_shapes
from tutelage.models.weights import save_weights
from tutelage.recipes import Recipe, resolve
from tutelage.runs.published import find
from tutelage.runs.record import RunFolder
from tutelage.training.distributed import launched
from tutelage.training.hardware import hardware, pick_device, place
from tutelage.training.networks import network_facts
from tutelage.training.preprocessing import own_normalisation
from tutelage.training.probe_config import ProbeRecipe, departures, resolve_probe
from tutelage.training.probe_features import Backbone, load_images
from tutelage.training.probe_network import first_weights, frozen_network, own_side
from tutelage.training.probe_training import fit_lbfgs, summary, train_sgd
from tutelage.training.progress import Reporter
from tutelage.training.schedules import warmup_warning
from tutelage.training.starting import RUNS_FOLDER, numbered_folder
from tutelage.training.versions import versions

FORMAT = 1
RECORD, CLASSIFIER = "probe.json", "classifier.safetensors"


def probe(
    model: str | None = None,
    *,
    weights: str | Path | None = None,
    run: str | Path | None = None,
    protocol: str = "packd",
    data: str | None = None,
    data_dir: str | Path | None = None,
    download: bool | None = None,
    few_ratio: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train a linear classifier on the pooled features of a frozen network, and test it.

    Args:
        model: Name of the network; None takes the student of ``run``.
        weights: Its weights, of any number of classes; may be missing with ``model.args.pretrained=true``.
        run: A run's folder, whose student is probed.
        protocol: "packd", "hsakd" or "lbfgs", see `probe_config.PROTOCOLS`.
        data: Name of the dataset.
        data_dir: Folder that holds it.
        download: Fetch it when it is not there.
        few_ratio: Share of its training images.
        epochs: For the protocols that train by SGD.
        batch_size: Likewise.
        seed: Of the first weights, the order and the views.
        device: Where to compute.
        out: Folder for ``probe.json`` and ``classifier.safetensors``; None makes one under ``runs/``.
        settings: ``key.path=value`` changes of `probe_config.ProbeRecipe`.
        reporter: Where progress is shown; None shows nothing.

    Returns:
        The content of ``probe.json`` with ``out`` (the folder) added. ``summary`` has ``last``, the result,
        and ``best``, the best epoch on the test images, which is what the papers report.

    Raises:
        UserError: The request can't be met.
        TutelageError: Training failed.
    """
    reporter = reporter or Reporter(quiet=True)
    flags: dict[str, Any] = {
        "model.name": model,
        "model.weights": None if weights is None else str(weights),
        "data.name": data,
        "data.dir": None if data_dir is None else str(data_dir),
        "data.download": download,
        "data.few_ratio": few_ratio,
        "sgd.schedule.epochs": epochs,
        "sgd.batch_size": batch_size,
        "seed": seed,
        "runtime.device": device,
    }
    if run is None:
        if model is None:
            raise UserError("no network is named; give --model NAME --weights FILE, or --run FOLDER")
        recipe = resolve_probe(protocol, flags, settings)
        return _run(recipe, out, None, reporter)
    if model is not None or weights is not None:
        raise UserError("--run names network and weights; drop --model and --weights, or --run")
    made = resolve(str(RunFolder.open(Path(run)).recipe))
    student = made.student.model_dump(exclude={"weights", "prefix"})
    recipe = resolve_probe(protocol, {"model": student, **flags}, settings)
    file = weights_of(Path(run), recipe.checkpoint)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": str(file)})})
    return _run(recipe, out, origin(Path(run), made, recipe), reporter)


def weights_of(run: Path, checkpoint: str) -> Path:
    """The student's weights in a run's folder.

    Raises:
        UserError: It has none yet.
    """
    file = run / {"last": "student.safetensors", "best": "student_best.safetensors"}[checkpoint]
    if not file.is_file():
        raise UserError(f"{file} is missing; finish the run with 'tutelage resume {run}' first")
    return file


def origin(run: Path, made: Recipe, recipe: ProbeRecipe) -> dict[str, Any]:
    """Where a run's student comes from, and what was published for its kind."""
    teacher = made.teacher.name if made.teacher is not None else None
    method = made.method["name"]
    figures = find(method, teacher, made.student.name, recipe.data.name, metric="linear_top1")
    return {
        "folder": str(run),
        "method": method,
        "teacher": teacher,
        "checkpoint": recipe.checkpoint,
        "published": [
            {"project": figure.project, "label": figure.label, "top1": figure.value} for figure in figures
        ],
    }


def check_folder(out: str | Path | None) -> None:
    """Check that a record can be written to ``out``, or below ``runs/``, before any work is done for it.

    Raises:
        UserError: It holds a record or a classifier already, is a file, or its name is empty.
        TutelageError: It can't be written.
    """
    folder = named_path(out) if out is not None else RUNS_FOLDER
    if (folder / RECORD).exists():
        raise UserError(f"{folder} already holds a probe; choose another --out")
    RunFolder.claim(folder, written=() if out is None else ("classifier.*",))


def _run(
    recipe: ProbeRecipe, out: str | Path | None, source: dict[str, Any] | None, reporter: Reporter
) -> dict[str, Any]:
    began = time.perf_counter()
    check_folder(out)
    if launched() > 1:
        raise UserError("a probe is computed by one process; start it without torchrun")
    device = pick_device(recipe.runtime.device)
    if recipe.runtime.threads is not None:
        torch.set_num_threads(recipe.runtime.threads)
    info = dataset_info(recipe.data.name)
    given = (info.mean, info.std)
    if recipe.data.normalisation == "weights":
        given = own_normalisation(recipe.model) or given
    network = frozen_network(recipe.model)
    side = recipe.data.image_size or own_side(recipe.model, network, info.image_size)
    check_input(network.model, side)
    pooled = probe_shapes(network, side).pooled
    assert pooled is not None  # it was asked for
    width = math.prod(pooled)
    images = load_images(recipe, side, given, device)
    classes = images.info.num_classes
    torch.manual_seed(recipe.seed)
    first = first_weights(recipe.model, width, classes, device)
    place(network, device, channels_last=True)
    backbone = Backbone(network, images, recipe, width)
    reporter.say(
        f"{recipe.model.name}: {width} features, {images.train_size:,} training images of {info.name}"
    )
    slow = None if recipe.sgd is None else warmup_warning(recipe.sgd.schedule)
    if slow:
        reporter.warn(slow)
    test = backbone.features("test")
    if recipe.sgd is not None:
        trained = train_sgd(backbone, test, first, recipe, recipe.sgd, reporter)
    else:
        assert recipe.lbfgs is not None  # the schema sees to it
        trained = fit_lbfgs(backbone, test, classes, recipe, recipe.lbfgs, reporter)
    facts = {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "task": "probe",
        "protocol": recipe.protocol,
        "departures": departures(recipe),
        "seed": recipe.seed,
        "data": {
            "name": recipe.data.name,
            "classes": classes,
            "train_images": images.train_size,
            "test_images": images.size("test"),
            "image_size": side,
            "mean": list(given[0]),
            "std": list(given[1]),
            "flip": images.info.flip,
            "unreadable": sorted(images.unreadable),
        },
        "model": {**network_facts(recipe.model, network, (side, side)), "features": width},
        "run": source,
        "recipe": recipe.model_dump(mode="json"),
        "choice": trained.choice,
        "summary": summary(trained),
        "metrics": trained.metrics,
        "hardware": hardware(device),
        "versions": versions(),
        "seconds": round(time.perf_counter() - began, 1),
    }
    noted = {
        "num_classes": classes,
        "class_names": list(images.info.class_names),
        "dataset": recipe.data.name,
        "backbone": facts["model"],
        "top1": trained.metrics[-1]["test"]["top1"],
    }
    stem = f"probe-{recipe.model.name}-{recipe.data.name}-{recipe.protocol}-s{recipe.seed}"
    folder = numbered_folder(stem) if out is None else Path(out)
    save_weights(folder / CLASSIFIER, trained.classifier._asdict(), noted)
    write_json(folder / RECORD, facts)
    return {"out": str(folder), **facts}
