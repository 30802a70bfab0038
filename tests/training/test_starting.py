"""What a run settles before its first step: its folder, and what is written down of its beginning."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tutelage
from killing import Killed, killed_after
from toys import BRIEF_RUN
from tutelage.errors import TutelageError, UserError
from tutelage.recipes import resolve
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
