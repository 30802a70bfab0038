"""The demo, on images and schedules small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tutelage.errors import UserError
from tutelage.methods import create_method, method_names
from tutelage.runs import RunFolder
from tutelage.runs.tables import Gain, Row
from tutelage.training import demo as module
from tutelage.training.demo import demo, explain, new_folder

TINY = {
    "data": {"name": "shapes", "batch_size": 10},
    "student": {"name": "resnet8_cifar"},
    "optimiser": {"lr": 0.02},
    "schedule": {"epochs": 1},
    "runtime": {"amp": "off", "compile": "off", "tensorboard": False},
}


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of thirty and twenty images, in a temporary folder, on one thread."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    for name, ratio in (("teacher", 0.03), ("student", 0.02)):
        values = {**TINY, "data": {**TINY["data"], "few_ratio": ratio}}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(values))
        monkeypatch.setattr(module, name.upper(), f"{name}.yaml")


def test_the_demo_compares_a_student_alone_with_the_same_student_distilled(tmp_path: Path) -> None:
    result = demo(seeds=2, device="cpu")
    assert json.loads(json.dumps(result)) == result
    folder = Path(result["out"])
    assert folder == Path("runs/demo") and Path(result["page"]).is_file()
    alone, taught = result["rows"]
    assert (alone["method"], taught["method"]) == ("none", "kd")
    top1 = {}
    for row in (alone, taught):
        records = [RunFolder.open(Path(run)).facts() for run in row["runs"]]
        assert [facts["seed"] for facts in records] == row["seeds"] == [0, 1]
        top1[row["method"]] = [facts["summary"]["last"]["test"]["top1"] for facts in records]
        assert row["top1"] == pytest.approx(np.mean(top1[row["method"]]))
    assert result["gain"] == pytest.approx(np.mean(top1["kd"]) - np.mean(top1["none"]))
    error = np.sqrt(sum(np.var(values, ddof=1) / 2 for values in top1.values()))
    assert result["gain_standard_error"] == pytest.approx(error)
    teacher = RunFolder.open(folder / "teacher").facts()
    assert result["teacher"]["top1"] == teacher["summary"]["last"]["test"]["top1"] == taught["teacher_top1"]
    assert result["teacher"]["train_images"] == 30 and "30 labelled" in result["note"]
    page = Path(result["page"]).read_text()
    assert f"{taught['top1']:.2f}" in page and "20 labelled" in page


def test_both_students_are_trained_alike() -> None:
    rows = demo("here", seeds=2, device="cpu")["rows"]
    for pair in zip(*(row["runs"] for row in rows), strict=True):
        recipes = [yaml.safe_load((Path(run) / "recipe.yaml").read_text()) for run in pair]
        facts = [RunFolder.open(Path(run)).facts() for run in pair]
        assert recipes[0]["teacher"] is None and recipes[1]["teacher"]["weights"]
        for part in ("seed", "data", "student", "optimiser", "schedule", "runtime"):
            assert recipes[0][part] == recipes[1][part]
        for fact in ("protocol", "normalisation"):
            assert facts[0][fact] == facts[1][fact]
        assert facts[0]["student"]["weights_hash"] == facts[1]["student"]["weights_hash"]
    assert Path("here/index.html").is_file() and not Path("runs").exists()


QUICK = ("fitnet", "hsakd", "hssakd", "dpcd_teacher")
EVERY = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in method_names()
    if name != "none"
]


@pytest.mark.parametrize("method", EVERY)
def test_every_method_can_be_shown(method: str) -> None:
    result = demo("here", method=method, seeds=2, device="cpu")
    alone, shown = result["rows"]
    assert (alone["method"], shown["method"]) == ("none", method)
    assert method in result["note"]
    has_teacher = create_method(method).needs.teacher is not None
    assert (result["teacher"] is not None) == (shown["teacher"] is not None) == has_teacher
    assert ("no teacher is involved" in result["note"]) != has_teacher
    recipes = [yaml.safe_load((Path(run) / "recipe.yaml").read_text()) for run in shown["runs"]]
    measured = not create_method(method).needs.student_branches
    assert [recipe["data"]["branch_evaluation"] for recipe in recipes] == [measured] * 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "none"}, "'none' is what the demo compares with"),
        ({"method": "kdd"}, "no method 'kdd'; did you mean 'kd'"),
        ({"seeds": 1}, "2 or more"),
        ({"out": "taken"}, "taken has something in it already"),
        ({"out": "student.yaml"}, "student.yaml is a file"),
        ({"device": "gpu"}, "'gpu' is no device name"),
    ],
)
def test_what_the_demo_cannot_show_is_refused_before_it_begins(settings: dict, sentence: str) -> None:
    Path("taken").mkdir()
    Path("taken/something").touch()
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=sentence):
        demo(**{"device": "cpu", **settings})
    assert sorted(Path().rglob("*")) == before


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without torchrun"):
        demo(device="cpu")
    assert not Path("runs").exists()


def test_the_default_folder_is_numbered_when_taken() -> None:
    Path("runs/demo-2").mkdir(parents=True)
    assert [new_folder(None) for _ in range(3)] == [Path("runs", f"demo{end}") for end in ("", "-3", "-4")]
    assert new_folder("runs/demo") == Path("runs/demo")


@pytest.mark.parametrize(
    ("mean", "error", "words"),
    [
        (4.5, 1.0, "a gain that noise over the seeds doesn't"),
        (-4.5, 1.0, "a loss that noise over the seeds doesn't"),
        (2.5, 1.0, "noise may explain"),
        (-2.5, 1.0, "noise may explain"),
        (0.0, 0.0, "noise may explain"),
    ],
)
def test_the_sentence_fits_the_numbers(mean: float, error: float, words: str) -> None:
    def row(method: str) -> Row:
        best = (80.0, 1.0, "test")
        return Row(method, "", "s", "t", 99.0, 80.0, 1.0, *best, 10, 10, 1.0, (0, 1, 2), ())

    teacher = {"name": "t", "parameters": 2000, "train_images": 1000}
    text = explain(row("none"), row("kd"), Gain(mean, error), teacher, 100)
    assert words in text
    for part in (f"{mean:+.2f} points", "3 seeds", "100 labelled", "1000 labelled", "80.00 ± 1.00%"):
        assert part in text
