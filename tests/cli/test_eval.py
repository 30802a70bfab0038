"""The settings of eval: those that change what is measured are taken, all others are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.training.flags import EVALUATED, FLAGS

from .conftest import Run

Maker = Callable[..., Path]


@pytest.mark.parametrize(
    "setting",
    [
        "schedule.epochs=3",
        "optimiser.lr=0.1",
        "data.mixup=0.2",
        "data={few_ratio: 0.5}",
        "method.temperature=2",
        "runtime.ema_decay=0.9",
        "teacher.weights=x",
        "seed=3",
    ],
)
def test_settings_of_training_are_refused(run: Run, make_weights: Maker, setting: str) -> None:
    named = ("eval", "--model", "resnet8_cifar", "--weights", make_weights("resnet8_cifar"))
    given = ("--set", "method.name=kd") if setting.startswith("method") else ()
    given += ("--set", "teacher.name=resnet8_cifar") if setting.startswith("teacher") else ()
    result = run(*named, "--data", "shapes", *given, "--set", setting)
    result.assert_refused(2, "an evaluation doesn't use '", "leave it out (data.image_size")


def test_unknown_settings_are_refused_as_everywhere(run: Run, make_weights: Maker) -> None:
    named = ("eval", "--model", "resnet8_cifar", "--weights", make_weights("resnet8_cifar"))
    run(*named, "--set", "data.image_sise=64").assert_refused(2, "did you mean 'image_size'?")


def test_settings_that_change_what_is_measured_are_taken(run: Run, make_weights: Maker) -> None:
    named = ("eval", "--model", "resnet8_cifar", "--weights", make_weights("resnet8_cifar"))
    settings = ("data.image_size=24", "data.interpolation=bilinear", "student.args={}", "runtime.workers=0")
    given = [word for setting in settings for word in ("--set", setting)]
    result = run(*named, "--data", "shapes", "--device", "cpu", *given, "--json")
    assert result.code == 0 and result.json["image_size"] == [24, 24]


def test_every_flag_of_eval_is_used() -> None:
    for flag in ("model", "weights", "data", "data_dir", "download", "pretrained", "device"):
        section, name, *_ = FLAGS[flag].split(".")
        assert name in EVALUATED[section]


def test_only_flags_that_eval_has_are_recommended(run: Run) -> None:
    result = run("eval", "--weights", "w.safetensors")
    result.assert_refused(2, "no network is named; give --model NAME (tutelage list models)")
    assert "--recipe" not in result.err
