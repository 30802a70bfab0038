"""A trained student as files for others: timm's layout, torch.export, ONNX; and how it compares."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tutelage
from tutelage.errors import TutelageError, UserError
from tutelage.files import check_new_folder, named_path, new_folder
from tutelage.models.creation import check_input, check_name, first_line
from tutelage.models.fingerprint import multiply_adds
from tutelage.models.folding import folded
from tutelage.models.network import Network
from tutelage.models.probing import image_shape
from tutelage.models.programs import (
    CHECKED,
    check_onnx,
    compare,
    plain_answer,
    read_onnx,
    read_program,
    trace_program,
    write_onnx,
    write_program,
)
from tutelage.models.timm_layout import Preprocessing, check_timm_folder, write_timm_folder
from tutelage.models.weights import read_sidecar
from tutelage.recipes import ModelRecipe, Recipe
from tutelage.training.export_card import model_card
from tutelage.training.export_source import Source, blank_network, from_run, from_weights
from tutelage.training.flags import resolve_flags
from tutelage.training.hardware import hardware
from tutelage.training.latency import latencies
from tutelage.training.loading import load_data
from tutelage.training.preprocessing import Resize
from tutelage.training.progress import Reporter
from tutelage.training.shown import evaluation_filter
from tutelage.training.versions import versions

PROGRAM, ONNX, CARD, REPORT = "model.pt2", "model.onnx", "README.md", "export.json"
IMAGES = max(CHECKED)


def export(
    run: str | Path | None = None,
    *,
    out: str | Path,
    best: bool = False,
    ema: bool = False,
    model: str | None = None,
    weights: str | Path | None = None,
    teacher: str | None = None,
    data: str | None = None,
    data_dir: str | Path | None = None,
    settings: Iterable[str] = (),
    program: bool = True,
    onnx: bool = True,
    latency: bool = True,
    push_to: str | None = None,
    private: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write a trained network into a folder that others can use without this project.

    Every file is checked against the network before the folder appears: timm loads it to the bit, and the
    programs answer alike up to `models.programs.ALLOWED`, on the dataset's test images where those are at
    hand.

    Args:
        run: Folder of the run whose student is exported; None takes ``weights``.
        out: The folder to make; it must not exist or be empty.
        best: Take the run's best epoch instead of the last.
        ema: Take the moving average of the weights; with ``best`` that of its own best epoch.
        model: The network of ``weights``; None takes the name noted beside them.
        weights: A weights file, instead of a run.
        teacher: Network to compare size and speed with; None takes the run's.
        data: The dataset ``weights`` are for; None takes the one noted beside them.
        data_dir: Folder with the dataset; None takes the run's, else ``./data``.
        settings: ``key.path=value``, such as ``student.args.img_size=64``, where ``weights`` are exported.
        program: Write ``model.pt2``.
        onnx: Write ``model.onnx``.
        latency: Measure how long student and teacher take.
        push_to: Repository on the Hugging Face hub (``OWNER/NAME``) that gets the folder as well.
        private: Make that repository a private one, where it doesn't exist yet.
        reporter: Where progress and warnings are shown; None shows nothing.

    Returns:
        ``out``, ``files`` (bytes by name), ``checks`` (largest difference of a logit by file and number of
        images), ``networks`` (the table), ``config`` (timm's), ``images`` ("test images of ..." or
        "generated"), ``warnings``, and ``pushed_to``.

    Raises:
        UserError: The request can't be met: no run or weights, an unknown teacher, a folder in use, a
            missing package.
        TutelageError: A file doesn't answer as the network does, or can't be written; then none is left.
    """
    target, reporter = named_path(out), reporter or Reporter(quiet=True)
    check_new_folder(target)
    if private and push_to is None:
        raise UserError("--private is about the repository of --push-to; give both or neither")
    if teacher is not None:
        check_name(teacher)
    if onnx:
        check_onnx()
    given = {"model": model, "weights": weights, "data": data}
    source = _source(run, best, ema, given, list(settings), data_dir)
    preprocessing, warnings = source.preprocessing, list(source.warnings)
    size = preprocessing.input_size
    check_input(source.model, size)
    asked_for = data is not None or data_dir is not None
    images, origin = check_images(source, preprocessing, data_dir, asked_for)
    with new_folder(target) as folder:
        reporter.say("writing and checking the files ...")
        config = write_timm_folder(source.model, folder, preprocessing, source.labels, source.part.args)
        check_timm_folder(folder, source.model, images[:IMAGES])
        checks = write_programs(source.model, folder, images, preprocessing, program, onnx)
        other = ModelRecipe(name=teacher) if teacher is not None else source.recipe.teacher
        reporter.say("measuring ..." if latency else "counting ...")
        rows = measure(source, other, size, folder, onnx, latency, warnings)
        made = sorted(path.name for path in folder.iterdir())
        (folder / CARD).write_text(model_card(source, config, rows, made), encoding="utf-8")
        report = {
            "model": source.part.name,
            "weights": source.which or "file",
            "checks": checks,
            "images": origin,
            "networks": rows,
            "measured_on": hardware(torch.device("cpu")) if latency else None,
            "versions": versions(*(("onnx", "onnxruntime") if onnx else ())),
            "warnings": warnings,
        }
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        (folder / REPORT).write_text(text, encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    for warning in warnings:
        reporter.warn(warning)
    pushed = push(target, push_to, private) if push_to is not None else None
    return {"out": str(target), "files": sizes, **report, "config": config, "pushed_to": pushed}


def _source(
    run: str | Path | None,
    best: bool,
    ema: bool,
    given: Mapping[str, Any],
    settings: list[str],
    data_dir: str | Path | None,
) -> Source:
    """The network that the request names."""
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if run is not None:
        if given["weights"] is not None:
            raise UserError("--run and --weights both name what to export; give one of them")
        if named or settings:
            flag = (named or ["--set"])[0]
            raise UserError(f"{flag} goes with --weights; a run knows its network and its data")
        which = "_".join(name for name, wanted in (("ema", ema), ("best", best)) if wanted)
        return from_run(Path(run), which or "last")
    if best or ema:
        raise UserError(f"--{'best' if best else 'ema'} chooses among a run's weights; give --run FOLDER")
    if given["weights"] is None:
        raise UserError("nothing is named to export; give --run FOLDER, or --model NAME --weights FILE")
    noted = read_sidecar(given["weights"])
    flags = {
        "model": given["model"] or noted.get("model"),
        "weights": str(given["weights"]),
        "data": given["data"],
        "data_dir": None if data_dir is None else str(data_dir),
    }
    recipe = resolve_flags("train", None, settings, flags, whole=False)
    facts: dict[str, Any] = {} if given["data"] is None else {"dataset": given["data"]}
    if recipe.data.image_size is not None:
        facts["image_size"] = [recipe.data.image_size] * 2
    if recipe.data.mean is not None and recipe.data.std is not None:
        facts |= {"mean": list(recipe.data.mean), "std": list(recipe.data.std)}
    return from_weights(recipe, facts)


def check_images(
    source: Source, preprocessing: Preprocessing, data_dir: str | Path | None, asked_for: bool
) -> tuple[Tensor, str]:
    """Images to compare answers on: of the test split where the dataset is at hand, else random ones.

    Args:
        source: What is exported.
        preprocessing: What its images go through.
        data_dir: Folder with the dataset; None takes the recipe's.
        asked_for: Whether the user named the data, who then is told why they can't be had.

    Returns:
        [B, 3, H, W] float32 on the CPU, normalised, and what they are.

    Raises:
        TutelageError: The data were asked for and can't be had.
    """
    name = source.facts.get("dataset") or source.recipe.data.name
    as_noted = {
        "image_size": preprocessing.input_size[0],
        "crop_share": preprocessing.crop_pct,
        "interpolation": evaluation_filter(preprocessing.interpolation),
    }
    if source.run:
        as_noted = {}  # the run's recipe knows how its images come about
    wanted = source.recipe.data.model_copy(
        update={
            "name": name,
            "dir": source.recipe.data.dir if data_dir is None else str(data_dir),
            "download": False,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            **as_noted,
        }
    )
    runtime = source.recipe.runtime.model_copy(update={"workers": 0})
    recipe = source.recipe.model_copy(update={"data": wanted, "runtime": runtime})
    known = bool(source.facts.get("dataset")) or asked_for
    try:
        if not known:
            raise UserError("no dataset is noted beside the weights")
        images = _test_images(recipe, preprocessing.input_size)
    except TutelageError:
        if asked_for:
            raise
        generator = torch.Generator().manual_seed(0)
        return torch.randn(IMAGES, *image_shape(preprocessing.input_size), generator=generator), "generated"
    return images, f"test images of {name}"


def _test_images(recipe: Recipe, size: tuple[int, int]) -> Tensor:
    batches = load_data(recipe, torch.device("cpu")).eval_batches("test", IMAGES)
    images = next(batches).images.contiguous()
    if tuple(images.shape[-2:]) != size:  # the student has an image size of its own
        images = Resize(size)(images)
    missing = IMAGES - len(images)
    return torch.cat([images, images[:1].expand(max(missing, 0), -1, -1, -1)])


def write_programs(
    model: nn.Module,
    folder: Path,
    images: Tensor,
    preprocessing: Preprocessing,
    program: bool,
    onnx: bool,
) -> dict[str, dict[str, float]]:
    """Write what is wanted of ``model.pt2`` and ``model.onnx`` and compare it with the network.

    Batch norms that follow convolutions are folded into them; the answers are compared with the plain
    network's all the same.

    Returns:
        Largest difference of a logit, by file and number of images.

    Raises:
        TutelageError: See `models.programs.compare`.
    """
    if not program and not onnx:
        return {}
    plain = Network(copy.deepcopy(model), role="frozen")
    traced = trace_program(folded(plain, preprocessing.input_size).model, preprocessing.input_size)
    checks = {}
    if program:
        write_program(traced, folder / PROGRAM)
        checks[PROGRAM] = compare(PROGRAM, read_program(folder / PROGRAM), model, images)
    if onnx:
        notes = {"preprocessing": json.dumps(preprocessing.config())}
        write_onnx(traced, folder / ONNX, notes)
        checks[ONNX] = compare(ONNX, read_onnx(folder / ONNX), model, images)
    return checks


def measure(
    source: Source,
    teacher: ModelRecipe | None,
    size: tuple[int, int],
    folder: Path,
    onnx: bool,
    latency: bool,
    warnings: list[str],
) -> list[dict[str, Any]]:
    """Size and speed of the student and, where there is one, its teacher.

    Args:
        source: What is exported.
        teacher: Part of a recipe; its weights aren't needed.
        size: Of the images.
        folder: Holds the student's ``model.onnx`` where there is one.
        onnx: Measure ONNX too.
        latency: Measure time; else sizes alone.
        warnings: Gets a sentence where the teacher can't be measured.

    Returns:
        A row for each network: ``role``, ``network``, ``image side`` (pixels), ``parameters``, ``MACs`` (for
        one image), ``megabytes`` (of its weights), and median milliseconds for each of `latency.BATCHES`, of
        PyTorch as it is and of onnxruntime.
    """
    networks = {"student": (source.part.name, source.model, size)}
    if teacher is not None:
        side = source.size_for(teacher)
        try:
            networks["teacher"] = teacher.name, blank_network(teacher, source.num_classes, side), side
        except TutelageError as error:
            warnings.append(f"the teacher is left out of the table: {error}")
    rows = [
        {
            "role": role,
            "network": name,
            "image side": side[0],
            "parameters": sum(p.numel() for p in model.parameters()),
            "MACs": multiply_adds(model, side),
            "megabytes": round(sum(value.nbytes for value in model.state_dict().values()) / 1e6, 3),
        }
        for role, (name, model, side) in networks.items()
    ]
    if not latency:
        return rows
    with tempfile.TemporaryDirectory() as scratch:
        timed = {f"{role} eager": (plain_answer(model), side) for role, (_, model, side) in networks.items()}
        for role, (_, model, side) in networks.items() if onnx else ():
            file = folder / ONNX if role == "student" else Path(scratch) / ONNX
            try:
                if role != "student":
                    write_onnx(trace_program(model, side), file)
                timed[f"{role} ONNX"] = read_onnx(file), side
            except TutelageError as error:
                warnings.append(f"the {role}'s ONNX is not measured: {error}")
        taken = latencies(timed)
    for row in rows:
        for kind in ("eager", "ONNX"):
            for count, milliseconds in taken.get(f"{row['role']} {kind}", {}).items():
                row[f"{kind} ms, batch {count}"] = milliseconds
    return rows


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload an exported folder to the Hugging Face hub, as ``timm.models.push_to_hf_hub`` lays it out.

    Returns:
        The repository's address.

    Raises:
        TutelageError: The hub refuses or can't be reached; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name="tutelage", library_version=tutelage.__version__)
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=str(folder), commit_message="Add model exported by Tutelage"
        )
    except Exception as error:
        raise TutelageError(
            f"{folder} is complete, but pushing it to '{repository}' failed: {first_line(error)}; log in "
            "with 'hf auth login' and check the name"
        ) from error
    return str(made)
