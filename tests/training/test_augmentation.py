"""The training settings of timm's world in whole runs: mixing, policies, erasing, repeats, averages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import tutelage
from killing import Killed, killed_after, same, without_times
from tutelage.errors import UserError
from tutelage.models.network import create_network
from tutelage.models.weights import save_weights
from tutelage.recipes import resolve
from tutelage.runs.record import RunFolder
from tutelage.training.build import assemble
from tutelage.training.stage_cache import phase_facts

BRIEF = (
    "data.few_ratio=0.07",
    "data.batch_size=16",
    "schedule.epochs=3",
    "optimiser.lr=0.02",
    "runtime.tensorboard=false",
    "runtime.threads=1",
)
EVERYTHING = (
    "data.augment=rand-m9-mstd0.5-inc1",
    "data.erase=0.25",
    "data.mixup=0.8",
    "data.cutmix=1.0",
    "data.mix_off_epoch=2",
    "data.repeats=2",
    "data.drop_last=true",
    "method.criterion=bce",
    "method.label_smoothing=0.1",
    "runtime.ema_decay=0.5",
)


def run(out: Path, *more: str) -> dict[str, Any]:
    return tutelage.train(model="resnet8_cifar", data="shapes", out=out, settings=[*BRIEF, *more])


def test_a_run_with_everything_resumes_to_the_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    facts = run(whole, *EVERYTHING)
    assert facts["protocol"]["repeats"] == 2
    # Of the four steps in each epoch, and one after what was saved.
    with killed_after(7), pytest.raises(Killed):
        run(killed, *EVERYTHING, "runtime.checkpoint_steps=2")
    tutelage.resume(killed)
    for name in ("student", "student_best", "student_ema", "student_ema_best"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (whole, killed))
        assert same(one, other), name
    assert without_times(whole) == without_times(killed)
    assert len(without_times(whole)) == 3


def test_the_average_is_written_last_and_best_beside_the_student(tmp_path: Path) -> None:
    facts = run(tmp_path / "run", "runtime.ema_decay=0.9", "data.val_fraction=0.1", "optimiser.lr=0.1")
    lines = RunFolder(tmp_path / "run").metrics()
    best, last = facts["summary"]["best"], facts["summary"]["last"]
    tops = [line["ema_val"]["top1"] for line in lines]
    assert best["ema"]["epoch"] == tops.index(max(tops)) and best["by"] == "val"
    assert best["ema"]["test"] == lines[best["ema"]["epoch"]]["ema_test"]
    assert last["ema_test"] == lines[-1]["ema_test"] and last["ema_val"] == lines[-1]["ema_val"]
    raw = [line["val"]["top1"] for line in lines]
    assert best["epoch"] == raw.index(max(raw)) and best["test"] == lines[best["epoch"]]["test"]
    for name, measured in (("ema", last["ema_test"]), ("ema_best", best["ema"]["test"])):
        weights = tmp_path / "run" / f"student_{name}.safetensors"
        noted = json.loads(weights.with_suffix(".json").read_text())
        assert noted["top1"] == noted["test"]["top1"] == measured["top1"]
        again = tutelage.evaluate("resnet8_cifar", weights=weights, data="shapes")
        assert again["loss"] == pytest.approx(measured["loss"], abs=1e-4) and again["warning"] is None
        assert again["expected_top1"] == measured["top1"]


def test_without_an_average_there_is_none(tmp_path: Path) -> None:
    facts = run(tmp_path / "run", "schedule.epochs=1")
    assert "ema" not in facts["summary"]["best"] and not list((tmp_path / "run").glob("*ema*"))


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    save_weights(tmp_path / "teacher.safetensors", create_network("resnet8_cifar", 10), {})
    return str(tmp_path / "teacher.safetensors")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["method.name=packd", "data.mixup=0.8"], "'packd' can't learn from images mixed of two classes"),
        (["method.name=packd", "data.cutmix=1"], "'packd' can't learn from images mixed of two classes"),
        (["method.name=packd", "data.repeats=3"], "'packd' remembers one row for each image"),
        (["method.name=crd", "data.repeats=3"], "'crd' remembers one row for each image"),
        (["method.name=kd", "data.augment=rand-m9-inc2"], "can't be 'rand-m9-inc2'; use true, false"),
        (["method.name=kd", "data.augment=autoaugmemt"], "can't be 'autoaugmemt'; use true, false"),
        (["method.name=kd", "data.mixup=-0.1"], "'data.mixup' can't be -0.1: input should be greater than"),
        (["method.name=kd", "data.cutmix=-1"], "'data.cutmix' can't be -1: input should be greater than"),
        (["method.name=kd", "data.color_jitter=-1"], "'data.color_jitter' can't be -1: input should"),
        (["method.name=kd", "data.erase=1.5"], r"'data.erase' can't be 1.5: input should be less than"),
        (["method.name=kd", "data.mix_probability=2"], "'data.mix_probability' can't be 2: input should be"),
        (["method.name=kd", "method.criterion=mse"], "'method.criterion' can't be 'mse': input should"),
        (
            ["method.name=kd", "data.drop_last=true", "data.batch_size=2000"],
            "a batch size of 2000 leaves no whole batch of 1000 training images",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    settings: list[str], sentence: str, teacher: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        tutelage.distill(
            student="resnet8_cifar",
            teacher="resnet8_cifar",
            teacher_weights=teacher,
            data="shapes",
            out=tmp_path / "run",
            settings=settings,
        )
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


CHANGES = [setting for setting in EVERYTHING if setting.startswith("data.")]


def test_every_setting_counts_in_the_hash_and_in_what_first_stages_depend_on(teacher: str) -> None:
    flags = {
        "student.name": "resnet8_cifar",
        "teacher.name": "resnet8_cifar",
        "teacher.weights": teacher,
        "data.name": "shapes",
        "method.name": "ft",
    }
    more = [
        [],
        *([change] for change in (*CHANGES, "data.color_jitter=0.4")),
        ["data.mixup=1", "data.mix_probability=0.5"],
        ["data.mixup=1", "data.mix_switch=0.7"],
        ["data.interpolation=bilinear"],
    ]
    recipes = [resolve(None, flags, settings) for settings in more]
    assert len({recipe.hash() for recipe in recipes}) == len(more)
    facts = []
    for recipe in recipes:
        parts = assemble(recipe)
        phase = parts.method.phases()[0]
        facts.append(json.dumps(phase_facts(recipe, parts.nets, parts.method, parts.data, phase, None)))
    assert len(set(facts)) == len(more)


def test_what_makes_accuracies_incomparable_is_in_the_protocol() -> None:
    def protocol(*settings: str) -> dict[str, Any]:
        recipe = resolve(None, {"student.name": "resnet8_cifar", "data.name": "shapes"}, settings)
        return assemble(recipe).protocol

    assert protocol("data.mixup=1") == protocol() and not {"crop_share", "repeats"} & set(protocol())
    large = protocol("data.image_size=48", "data.crop_share=0.9")
    assert (large["image_size"], large["crop_share"]) == ([48, 48], 0.9)
    assert protocol("data.repeats=3")["repeats"] == 3
    assert protocol("data.interpolation=bilinear")["interpolation"] == "bilinear"
