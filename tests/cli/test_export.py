"""The command that exports: what it prints, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.models import programs

from .conftest import Run

Maker = Callable[..., Path]
PLAIN = ("--no-program", "--no-onnx", "--no-latency")


def test_it_prints_one_object(run: Run, make_weights: Maker) -> None:
    weights = make_weights("resnet8_cifar", dataset="shapes", mean=[0.5] * 3, std=[0.2] * 3)
    given = ("--model", "resnet8_cifar", "--weights", weights, "--out", "out")
    result = run("export", *given, *PLAIN, "--json")
    assert result.code == 0 and len(result.out.splitlines()) == 1
    assert result.json["out"] == "out" and result.json["images"] == "test images of shapes"
    assert set(result.json["files"]) == {path.name for path in Path("out").iterdir()}
    assert result.json["config"]["pretrained_cfg"]["mean"] == [0.5] * 3


def test_it_prints_a_table(run: Run, make_weights: Maker) -> None:
    weights = make_weights("resnet8_cifar", 10)
    given = ("--model", "resnet8_cifar", "--weights", weights, "-o", "out", "--teacher", "resnet14_cifar")
    result = run("export", *given, "--no-onnx", "--no-latency", "--quiet")
    assert (result.code, result.err) == (0, "")
    for part in (
        "resnet8_cifar, 10 classes",
        "model.safetensors, ",
        "checked on",
        "model.pt2, 7 images",
        "loads the same network to the bit",
        "78,042",
        "resnet14_cifar",
    ):
        assert part in result.out


def test_bad_requests_end_in_a_sentence(
    run: Run, make_weights: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = make_weights("resnet8_cifar", 10)
    given = ("--model", "resnet8_cifar", "--weights", weights)
    run("export", *given).assert_refused(2, "--out")
    run("export", "--out", "out").assert_refused(2, "nothing is named to export; give --run FOLDER")
    run("export", "--run", "no", "--out", "out").assert_refused(2, "no holds no run")
    both = ("--run", "no", "--weights", weights)
    run("export", *both, "--out", "out").assert_refused(2, "--run and --weights both name what to export")
    run("export", "--run", "no", "--data", "shapes", "--out", "out").assert_refused(2, "--data goes with")
    run("export", "--weights", weights, "--out", "out").assert_refused(2, "no network is named; give --model")
    teacher = (*given, "--teacher", "resnet14_cifr", "--quiet", "--out", "out")
    run("export", *teacher).assert_refused(2, "there is no network 'resnet14_cifr'; did you mean")
    run("export", *given, "--private", "--out", "out").assert_refused(2, "--private is about", "--push-to")
    run("export", *given, "--out", weights.parent).assert_refused(2, "has something in it already")
    run("export", *given, "--out", weights).assert_refused(2, "is a file")
    run("export", *given, "--out", Path(weights, "out")).assert_refused(1, "can't write")
    Path("broken.safetensors").write_bytes(weights.read_bytes()[:1000])
    broken = ("--model", "resnet8_cifar", "--weights", "broken.safetensors", "--out", "out")
    run("export", *broken).assert_refused(2, "broken.safetensors is corrupt or cut off")
    monkeypatch.setattr(programs, "find_spec", lambda name: None)
    needed = 'needs onnx, onnxruntime, onnxscript; install the extra with pip install "tutelage[export]"'
    run("export", *given, "--out", "out").assert_refused(2, needed)
    assert not Path("out").exists()
