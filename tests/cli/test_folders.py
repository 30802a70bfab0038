"""Where commands write: never over a user's files, and never where nobody said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.recipes import dump, resolve

from .conftest import TINY, Run

Maker = Callable[..., Path]
TRAIN = ("train", "--model", "resnet8_cifar", *TINY, "--quiet")
RECIPE = "student: resnet8_cifar  # mine\ndata: {name: shapes, few_ratio: 0.08}\nschedule: {epochs: 1}\n"


def content(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def test_a_recipe_and_a_page_of_the_users_are_kept(run: Run) -> None:
    Path("mine").mkdir()
    Path("mine/recipe.yaml").write_text(RECIPE)
    Path("mine/index.html").write_text("<p>my page")
    before = content("mine")
    result = run("train", "--recipe", "mine/recipe.yaml", "--out", "mine")
    result.assert_refused(2, "mine holds index.html, recipe.yaml, which would be", "another --out")
    assert content("mine") == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "state.pt", "student_best.safetensors", "peer1.json"])
def test_what_else_a_run_writes_is_kept(run: Run, name: str) -> None:
    Path("mine").mkdir()
    Path("mine", name).write_text("mine")
    run(*TRAIN, "--out", "mine").assert_refused(2, f"mine holds {name}, which would be overwritten")
    assert content("mine") == {name: b"mine"}


def test_folders_that_lose_nothing_are_taken(run: Run) -> None:
    Path("empty").mkdir()
    assert run(*TRAIN, "--out", "empty").code == 0
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    assert run(*TRAIN, "--out", "mine").code == 0
    assert Path("mine/notes.txt").read_text() == "mine" and Path("mine/student.safetensors").is_file()


def test_a_run_repeats_in_the_folder_of_its_own_recipe(run: Run) -> None:
    """As after a run that was killed between writing its recipe and its facts."""
    Path("recipe.yaml").write_text(RECIPE)
    Path("mine").mkdir()
    Path("mine/recipe.yaml").write_text(dump(resolve("recipe.yaml", {"task": "train"})))
    before = content("mine")["recipe.yaml"]
    assert run("train", "--recipe", "mine/recipe.yaml", "--out", "mine", "--quiet").code == 0
    assert content("mine")["recipe.yaml"] == before


def test_a_probe_keeps_what_is_not_its_own(run: Run, make_weights: Maker) -> None:
    named = ("probe", "--model", "resnet8_cifar", "--weights", make_weights("resnet8_cifar"))
    few = ("--data", "shapes", "--few-ratio", "0.08", "--epochs", "1", "--device", "cpu")
    Path("mine").mkdir()
    Path("mine/classifier.json").write_text("{}")
    run(*named, *few, "--out", "mine").assert_refused(2, "mine holds classifier.json, which would be")
    Path("mine/classifier.json").rename("mine/recipe.yaml")  # which a probe doesn't write
    assert run(*named, *few, "--out", "mine", "--quiet").code == 0
    assert Path("mine/recipe.yaml").read_text() == "{}"


def test_imported_weights_overwrite_nothing_but_weights(run: Run, make_weights: Maker) -> None:
    call = ("weights", "import", make_weights("resnet8_cifar"), "-o")
    Path("package.json").write_text("{}")
    run(*call, "package.safetensors").assert_refused(2, "package.json is there already")
    assert Path("package.json").read_text() == "{}" and not Path("package.safetensors").exists()
    Path("folder").mkdir()
    run(*call, "folder").assert_refused(2, "folder is a folder; give the name of the file to write")
    for _ in range(2):  # weights that were imported before may be imported anew
        assert run(*call, "mine.safetensors").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--model", "resnet8_cifar", *TINY, "--out"),
        ("mutual", "--student", "resnet8_cifar", *TINY, "--out"),
        ("demo", "--out"),
        ("probe", "--model", "resnet8_cifar", "--weights", "WEIGHTS", "--data", "shapes", "--out"),
        ("export", "--model", "resnet8_cifar", "--weights", "WEIGHTS", "--out"),
        ("weights", "import", "WEIGHTS", "--out"),
        ("data", "prepare", "tiny-imagenet", "x.zip", "--to"),
    ],
    ids=" ".join,
)
def test_an_empty_name_is_refused(run: Run, make_weights: Maker, arguments: tuple[str, ...]) -> None:
    weights = str(make_weights("resnet8_cifar"))
    named = [weights if word == "WEIGHTS" else word for word in arguments]
    run(*named, "").assert_refused(2, "the name to write to is empty")
    assert not list(Path().iterdir())


def test_a_page_beside_the_runs_is_no_hindrance(run: Run) -> None:
    Path("runs").mkdir()
    Path("runs/index.html").write_text("<p>all runs")
    assert run(*TRAIN).code == 0
    assert content("runs") == {"index.html": b"<p>all runs"}
