"""What a run settles before its first step: its folder, and what is written down of its beginning."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch

import tutelage
from killing import Killed, killed_after
from toys import BRIEF_RUN, draw_folders, draw_image, saved_network
from tutelage.errors import TutelageError, UserError
from tutelage.models.fingerprint import weights_hash
from tutelage.models.weights import read_state_dict
from tutelage.recipes import resolve
from tutelage.runs import RunFolder, summarise
from tutelage.training.networks import origin_hash
from tutelage.training.starting import default_folder


def test_runs_that_begin_together_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = resolve(None, {"student.name": "resnet8_cifar", "data.name": "hfds/a/b"})
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: default_folder(recipe), range(24)))
    stem = "runs/resnet8_cifar-none-hfds/a/b-s0"
    wanted = {stem, *(f"{stem}-{number}" for number in range(2, 25))}
    assert {str(folder) for folder in folders} == wanted and all(folder.is_dir() for folder in folders)


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="drop_lst"):
        tutelage.train(model="resnet8_cifar", data="shapes", settings=["data.drop_lst=true"])
    with pytest.raises(UserError, match="there is no weights file"):
        tutelage.train(model="resnet8_cifar", weights="no.safetensors", data="shapes")
    assert not Path("runs").exists()
    Path("runs").touch()
    with pytest.raises(UserError, match="runs is a file"):
        tutelage.train(model="resnet8_cifar", data="shapes")
    recipe = resolve(None, {"student.name": "resnet8_cifar"})
    with pytest.raises(TutelageError, match=r"can't make runs/.*name another folder with --out"):
        default_folder(recipe)


def test_how_a_run_is_computed_may_change_when_it_is_resumed(tmp_path: Path) -> None:
    out, settings = tmp_path / "run", [*BRIEF_RUN, "schedule.epochs=2", "runtime.checkpoint_steps=1"]
    with killed_after(2, saved=True), pytest.raises(Killed):
        tutelage.train(model="resnet8_cifar", data="shapes", out=out, settings=settings)
    recipe = out / "recipe.yaml"
    text = recipe.read_text()
    for old, new in (
        ("checkpoint_steps: 1", "checkpoint_steps: null"),
        ("workers: null", "workers: 0"),
        ("eval_batch_size: 100", "eval_batch_size: 50"),
    ):
        assert old in text
        text = text.replace(old, new)
    recipe.write_text(text)
    assert tutelage.resume(out)["status"] == "finished"


def test_seeds_that_begin_with_a_new_classifier_share_what_they_came_from(tmp_path: Path) -> None:
    weights = saved_network(tmp_path, "resnet8_cifar")
    runs = [tmp_path / f"run{seed}" for seed in (0, 1)]
    for seed, out in enumerate(runs):
        settings = [*BRIEF_RUN, "schedule.epochs=1", f"runtime.workers={seed}"]
        flags = {"model": "resnet8_cifar", "weights": weights, "reset_head": True, "seed": seed}
        tutelage.train(data="digits", out=out, settings=settings, **flags)
    facts = [RunFolder.open(out).facts()["student"] for out in runs]
    assert facts[0]["weights_hash"] != facts[1]["weights_hash"]
    assert facts[0]["origin_hash"] == facts[1]["origin_hash"] == weights_hash(read_state_dict(weights).state)
    (row,) = summarise(runs)
    assert row.seeds == (0, 1)


def test_the_origin_of_weights_includes_the_branches_that_are_used() -> None:
    state, branches = {"fc.weight": torch.zeros(2, 2)}, {"0.head.weight": torch.ones(2, 2)}
    assert origin_hash(state, {}) == weights_hash(state)
    assert origin_hash(state, branches) not in (
        weights_hash(state),
        origin_hash(state, {name: 2 * value for name, value in branches.items()}),
    )


def test_folders_of_one_name_with_other_images_are_not_averaged(tmp_path: Path) -> None:
    """Their files and labels have the same names and numbers; the folder of the third run is a copy."""
    folders = [draw_folders(tmp_path / "one"), draw_folders(tmp_path / "other"), tmp_path / "copy"]
    for split, end in product(("train", "val"), ("JPEG", "png")):
        for seed, path in enumerate((folders[1] / split).rglob(f"*.{end}")):
            draw_image(path, 1000 + seed)
    shutil.copytree(folders[0], folders[2])
    settings = [*BRIEF_RUN, *("data.few_ratio=1", "data.image_size=32", "schedule.epochs=1")]
    for seed, folder in enumerate(folders):
        tutelage.train(
            model="resnet8_cifar",
            data="folder",
            data_dir=folder,
            seed=seed,
            settings=[*settings, "runtime.workers=0"],
            out=tmp_path / f"run{seed}",
        )
    one, other, copy = (tmp_path / f"run{seed}" for seed in range(3))
    facts = [RunFolder.open(run).facts() for run in (one, other, copy)]
    assert facts[0]["train_digest"] == facts[2]["train_digest"] != facts[1]["train_digest"]
    with pytest.raises(UserError, match=r"different protocols .*test_digest"):
        summarise([one, other])
    (row,) = summarise([one, copy])
    assert row.seeds == (0, 2)
