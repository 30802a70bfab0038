"""The commands of transfer: probe, and preparing data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from miniatures import imagenet_files, imagenet_info, tiny_files, tiny_info, write_imagenet, write_zip
from tutelage.data import catalog, preparation

from .conftest import Run

Maker = Callable[..., Path]


def test_probe_prints_and_records(run: Run, make_weights: Maker) -> None:
    weights = make_weights("resnet8_cifar", 7)
    few = ("--data", "shapes", "--few-ratio", "0.08", "--device", "cpu")
    named = ("probe", "--model", "resnet8_cifar", "--weights", weights, *few)
    printed = run(*named, "--epochs", "2", "--out", "first", "--json")
    assert printed.code == 0 and len(printed.out.splitlines()) == 1
    assert printed.json == {"out": "first", **json.loads(Path("first/probe.json").read_text())}
    assert "epoch 2/2" in printed.err and "computed anew every epoch: random crops" in printed.err
    text = run(*named, "--epochs", "2", "--quiet")
    assert text.err == ""
    for part in ("resnet8_cifar, 64 features", "changed", "sgd.schedule.epochs=2", "best epoch", "record"):
        assert part in text.out
    fitted = run(*named, "--protocol", "lbfgs", "--quiet")
    assert "chosen on held-out training images" in fitted.out and "best epoch" not in fitted.out


def test_probe_refuses_in_one_sentence(run: Run, make_weights: Maker) -> None:
    run("probe").assert_refused(2, "no network is named; give --model NAME --weights FILE, or --run FOLDER")
    run("probe", "--model", "resnet8_cifar").assert_refused(2, "has no weights", "--weights FILE")
    named = ("probe", "--model", "resnet8_cifar", "--weights", make_weights("resnet8_cifar", 7))
    for flag in (("--epochs", "3"), ("--batch-size", "3"), ("--set", "sgd.lr=0.2")):
        run(*named, "--protocol", "lbfgs", *flag).assert_refused(2, "takes either sgd or lbfgs, not both")
    run(*named, "--set", "sgd=null").assert_refused(2, "takes either sgd or lbfgs, not neither")
    run(*named, "--data", "stl10").assert_refused(2, "no stl10 found")
    run(*named, "--data", "tiny-imagenet").assert_refused(2, "tutelage data prepare tiny-imagenet")


def test_prepare_tiny_imagenet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "dataset_info", lambda name: tiny_info())
    write_zip(Path("tiny.zip"), tiny_files())
    call = ("data", "prepare", "tiny-imagenet", "tiny.zip")
    run(*call).assert_refused(2, "tiny.zip is not tiny-imagenet's official archive", "--no-checksums")
    made = run(*call, "--no-checksums", "--json")
    assert made.code == 0 and made.err == ""
    assert made.json["folder"] == "data/tiny-imagenet" and made.json["train_images"] == 12
    assert Path("data/tiny-imagenet/val").is_dir()
    assert "it was prepared already" in run(*call, "--no-checksums").out


def test_prepare_imagenet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "dataset_info", lambda name: imagenet_info())
    write_imagenet(Path("archives"), imagenet_files())
    call = ("data", "prepare", "imagenet", "archives", "--to", "made")
    run(*call).assert_refused(2, "is not whole: it has", "--no-checksums")
    made = run(*call, "--no-checksums")
    assert made.code == 0 and "12 to train, 6 to validate" in made.out
    assert sorted(path.name for path in Path("made").iterdir()) == ["train", "val"]


def test_prepare_refuses_in_one_sentence(run: Run) -> None:
    run("data", "prepare", "tiny-imagnet", "x").assert_refused(2, "did you mean 'tiny-imagenet'?")
    run("data", "prepare", "cifar100", "x").assert_refused(2, "the other datasets are read as they are")
    run("data", "prepare", "tiny-imagenet", "x.zip").assert_refused(2, "there is no x.zip")
    run("data", "prepare", "imagenet", "x").assert_refused(2, "is missing", "image-net.org")


def test_what_is_prepared_is_trained_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalog._REGISTRY["tiny-imagenet"]
    monkeypatch.setitem(catalog._REGISTRY, "tiny-imagenet", entry._replace(info=tiny_info()))
    write_zip(Path("tiny.zip"), tiny_files())
    assert run("data", "prepare", "tiny-imagenet", "tiny.zip", "--no-checksums").code == 0
    named = ("--data", "tiny-imagenet", "--device", "cpu")
    trained = run("train", "--model", "resnet8_cifar", *named, "--epochs", "1", "--out", "run", "--json")
    assert trained.code == 0 and trained.json["protocol"]["train_images"] == 12
    found = run("doctor", "--model", "resnet8_cifar", *named, "--batch-size", "4", "--json")
    assert found.code == 0 and found.json["estimate"]["steps_per_epoch"] == 3
    probed = run("probe", "--run", "run", *named, "--epochs", "1", "--json")
    assert probed.code == 0 and probed.json["data"]["test_images"] == 6
    assert probed.json["run"]["method"] == "none"


def test_datasets_show_what_was_published_on_them(run: Run) -> None:
    for name, value in (("stl10", 72.45), ("tiny-imagenet", 38.94)):
        shown = run("show", name, "--json").json["linear_probes"]
        row = next(row for row in shown if row["label"] == "PACKD")
        assert row["top1"] == value and row["student"] == "resnet8x4_cifar" and len(shown) == 24
        assert f"{value:.2f}" in run("show", name).out
    assert run("show", "digits", "--json").json["linear_probes"] == []
