"""What the commands print: one JSON object on the last line, or text for people; progress on stderr."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tutelage.cli.console import facts, number, print_json, table

from .conftest import TINY, Run

Maker = Callable[..., Path]
TEACHER = ("distill", "--student", "resnet8_cifar", "--teacher", "resnet8_cifar", "--teacher-weights")
TRAIN = ("train", "--model", "resnet8_cifar", *TINY)


def test_train_prints_one_object_and_writes_the_record(run: Run) -> None:
    result = run(*TRAIN, "--out", "run", "--json")
    assert result.code == 0
    assert len(result.out.splitlines()) == 1
    assert "epoch 1/1" in result.err
    printed = result.json
    assert printed["out"] == "run" and printed["status"] == "finished"
    assert printed["protocol"]["train_images"] == 80
    stored = json.loads(Path("run/run.json").read_text())
    assert {**stored, "out": "run"} == printed


def test_quiet_leaves_only_the_result(run: Run) -> None:
    result = run(*TRAIN, "--out", "run", "--quiet")
    assert (result.code, result.err) == (0, "")
    for part in ("resnet8_cifar, 78,042 parameters", "last epoch", "record", "run"):
        assert part in result.out


def test_flags_settings_and_recipe_reach_the_run(run: Run) -> None:
    Path("mine.yaml").write_text("student: resnet14_cifar\nseed: 5\noptimiser: {lr: 0.03, momentum: 0.5}\n")
    setting = ("--set", "optimiser.lr=0.02", "--set", "note=hello")
    result = run("train", "--recipe", "mine.yaml", "--model", "resnet8_cifar", *TINY, *setting, "--json")
    assert result.json["out"] == "runs/resnet8_cifar-none-shapes-s5"
    shown = run("show", "runs/resnet8_cifar-none-shapes-s5/recipe.yaml", "--json").json
    assert shown["kind"] == "recipe" and shown["hash"] == result.json["recipe_hash"]
    recipe = shown["recipe"]
    assert (recipe["optimiser"]["lr"], recipe["optimiser"]["momentum"]) == (0.02, 0.5)
    assert (recipe["seed"], recipe["note"], recipe["data"]["batch_size"]) == (5, "hello", 16)


def test_distil_evaluate_and_resume(run: Run, make_weights: Maker) -> None:
    teacher = ("--teacher", "resnet14_cifar", "--teacher-weights", make_weights("resnet14_cifar", top1=99.0))
    made = run(
        "distill",
        "--student",
        "resnet8_cifar",
        *teacher,
        *TINY,
        "--val-fraction",
        "0.1",
        "--out",
        "run",
        "--json",
    )
    assert made.code == 0
    assert made.json["method"] == "kd"
    assert made.json["teacher"]["expected_top1"] == 99.0
    assert "warning: the teacher reaches" in made.err
    last = made.json["summary"]["last"]["test"]

    arguments = ("eval", "--model", "resnet8_cifar", "--data", "shapes", "--device", "cpu")
    measured = run(*arguments, "--weights", "run/student.safetensors", "--batch-size", "64", "--json")
    assert measured.json["top1"] == pytest.approx(last["top1"], abs=1e-3)
    assert measured.json["top5"] == pytest.approx(last["top5"], abs=1e-3)
    assert measured.json["loss"] == pytest.approx(last["loss"], abs=1e-3)
    assert measured.json["expected_top1"] == pytest.approx(last["top1"])
    assert measured.json["warning"] is None and measured.err == ""

    again = run("resume", "run", "--json")
    assert again.json["summary"]["last"] == made.json["summary"]["last"]
    assert "teacher     resnet14_cifar, test top-1" in run("resume", "run").out


def test_evaluation_warns_when_the_weights_promise_more(run: Run, make_weights: Maker) -> None:
    arguments = (
        "--model",
        "resnet8_cifar",
        "--weights",
        make_weights("resnet8_cifar", top1=99.0),
        "--data",
        "shapes",
    )
    result = run("eval", *arguments)
    assert result.code == 0
    assert result.err.startswith("warning: the model reaches") and "99.00%" in result.err
    assert "expected top-1  99.00%" in result.out
    assert run("eval", *arguments, "--json").json["warning"].startswith("the model reaches")


def test_evaluation_uses_the_normalisation_of_the_weights(run: Run, make_weights: Maker) -> None:
    weights = make_weights("resnet8_cifar", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    result = run("eval", "--model", "resnet8_cifar", "--weights", weights, "--data", "shapes", "--json")
    assert (result.json["mean"], result.json["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_doctor(run: Run, make_weights: Maker) -> None:
    teacher = ("--teacher", "resnet14_cifar", "--teacher-weights", make_weights("resnet14_cifar"))
    arguments = ("doctor", "--student", "resnet8_cifar", *teacher, "--method", "fitnet", *TINY)
    found = run(*arguments, "--json").json
    assert found["terms"].keys() == {"ce", "hint"}
    assert sum(term["gradient_share"] for term in found["terms"].values()) == pytest.approx(1)
    assert any("no normalisation" in warning for warning in found["warnings"])
    assert found["estimate"]["steps_per_epoch"] == 5
    text = run(*arguments, "--quiet")
    assert text.err == "" and "share of gradient" in text.out and "warning: " in text.out
    alone = run("doctor", "--model", "resnet8_cifar", *TINY)
    assert alone.code == 0 and "no warnings" in alone.out
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "key", "name"),
    [
        (("methods",), "methods", "kd"),
        (("datasets",), "datasets", "digits"),
        (("models",), "models", "resnet20_cifar"),
        (("models", "vit_tiny*"), "models", "vit_tiny_patch16_224"),
        (("models", "wrn_40"), "models", "wrn_40_2_cifar"),
        (("models", "--all"), "models", "resnet50"),
        (("recipes",), "recipes", "demo/student"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_list(run: Run, arguments: tuple[str, ...], key: str, name: str) -> None:
    entries = run("list", *arguments, "--json").json[key]
    names = [entry if isinstance(entry, str) else entry["name"] for entry in entries]
    assert name in names
    text = run("list", *arguments)
    assert text.code == 0
    assert all(any(line.startswith(each) for line in text.out.splitlines()) for each in names[:20])


def test_models_of_the_zoo_are_listed_by_default(run: Run) -> None:
    names = run("list", "models", "--json").json["models"]
    assert {"resnet20_cifar", "CycleMLP_B1", "swin_pico_patch4_window7_224"} <= set(names)
    assert "resnet18" not in names


@pytest.mark.parametrize(
    ("name", "kind", "parts"),
    [
        ("dkd", "method", ("arXiv 2203.08679", "temperature", "warmup_epochs", ">= 0", "teacher: logits")),
        ("none", "method", ("student: logits",)),
        ("resnet8x4_cifar", "model", ("1,233,540", "1/4", "0.5071", "begins with")),
        ("cifar100", "dataset", ("50,000 to train", "162 views", "Krizhevsky", "apple")),
        ("demo/teacher", "recipe", ("task: train", "schedule:")),
    ],
)
def test_show(run: Run, name: str, kind: str, parts: tuple[str, ...]) -> None:
    text = run("show", name)
    assert text.code == 0
    for part in parts:
        assert part in text.out
    assert run("show", name, "--json").json["kind"] == kind


def test_show_a_model_at_another_size(run: Run) -> None:
    shown = run("show", "resnet20_cifar", "--json").json
    assert shown["image_size"] == [32, 32] and shown["num_classes"] == 100
    larger = run("show", "resnet20_cifar", "--image-size", "64", "--num-classes", "10", "--json").json
    body = shown["macs"] - 64 * 100
    assert larger["macs"] == 4 * body + 64 * 10


def test_weights_import_and_inspect(run: Run) -> None:
    from tutelage.models.network import create_network

    network = create_network("resnet8_cifar", 10)
    torch.save(
        {"model": {f"module.{key}": value for key, value in network.state_dict().items()}}, "theirs.pth"
    )
    normalisation = ("--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6")
    made = run("weights", "import", "theirs.pth", "-o", "ours.safetensors", *normalisation, "--json")
    assert made.code == 0
    assert (made.json["models"], made.json["num_classes"]) == (["resnet8_cifar"], 10)
    assert made.json["std"] == [0.4, 0.5, 0.6]
    seen = run("weights", "inspect", "ours.safetensors", "--json").json
    assert seen["weights_hash"] == made.json["weights_hash"]
    text = run("weights", "inspect", "ours.safetensors").out
    assert "resnet8_cifar" in text and "0.1, 0.2, 0.3" in text
    assert "RepDistiller" in run("weights", "inspect", "theirs.pth").out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--mean", "0.1,0.2,0.3"), "--std"),
        (("--mean", "a,b,c", "--std", "1,1,1"), "0.5,0.5,0.5"),
        (("--mean", "1,2", "--std", "1,1"), "three numbers"),
        (("--model", "resnet14_cifar"), "they fit resnet8_cifar"),
        (("--prefix", "other"), "'other'"),
        (("-o", "theirs.pth"), "choose another name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_weights_that_cannot_be_imported_so(run: Run, arguments: tuple[str, ...], hint: str) -> None:
    from tutelage.models.network import create_network

    torch.save(create_network("resnet8_cifar", 10).state_dict(), "theirs.pth")
    before = Path("theirs.pth").read_bytes()
    run("weights", "import", "theirs.pth", "-o", "ours.safetensors", *arguments).assert_refused(2, hint)
    assert Path("theirs.pth").read_bytes() == before and not Path("ours.safetensors").exists()


def test_demo_passes_its_flags_on_and_prints_the_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "method": "dkd",
        "variant": "",
        "student": "resnet8_cifar",
        "teacher": "resnet14_cifar",
        "teacher_top1": 98.0,
        "top1": 80.5,
        "top1_std": 0.25,
        "best_top1": 81.0,
        "best_std": 0.5,
        "best_by": "test",
        "parameters": 78042,
        "macs": 12501632,
        "seconds": 9.0,
        "seeds": [0, 1],
        "runs": ["a", "b"],
    }
    seen: dict[str, Any] = {}

    def job(out: str | None, **settings: Any) -> dict[str, Any]:
        seen.update(settings, out=out)
        return {"rows": [row], "note": "So it is.", "page": "d/index.html", "seconds": 12.5}

    monkeypatch.setattr("tutelage.training.demo.demo", job)
    result = run("demo", "--method", "dkd", "--seeds", "2", "--device", "cpu", "--out", "d")
    assert result.code == 0
    for part in ("80.50 ± 0.25", "So it is.", "d/index.html"):
        assert part in result.out
    seen.pop("reporter")
    assert seen == {"method": "dkd", "seeds": 2, "device": "cpu", "out": "d"}
    assert run("demo", "--json").json["rows"] == [row]


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": math.nan, "b": [math.inf, 1.5, True], 3: Path("x")})
    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.5, true], "3": "x"}\n'


@pytest.mark.parametrize(
    ("value", "text"), [(1234567, "1,234,567"), (0.05, "0.05"), (1e-5, "1e-05"), (True, "True"), ("a", "a")]
)
def test_numbers(value: Any, text: str) -> None:
    assert number(value) == text


def test_doctor_says_what_is_tapped_and_added(run: Run, make_weights: Maker) -> None:
    arguments = ("doctor", "--student", "resnet8_cifar", "--teacher", "resnet14_cifar", *TINY, "--no-measure")
    text = run(*arguments, "--method", "fitnet", "--quiet")
    assert text.code == 0
    header = next(line for line in text.out.splitlines() if line.startswith("stage "))
    assert "student's module" in header and "teacher's module" in header
    assert re.search(r"^\w+[.\w]* +\w+ +.*\d+x\d+x\d+ +[\d,]+ +[\d,]+", text.out, re.MULTILINE)
    assert "MACs for an image" in text.out and "share of gradient" not in text.out
    assert "warning: the teacher 'resnet14_cifar' has random weights" in text.out
    prompted = run(*arguments, "--method", "pat", "--set", "method.dim=16", "--set", "method.heads=2")
    assert "prompt before" in prompted.out and "two a step" in prompted.out
    assert re.search(r"^prompt_blocks: 3 +[\d,]+ +[\d,]+", prompted.out, re.MULTILINE)
    assert re.search(r"^all +[\d,]+ +[\d,]+", prompted.out, re.MULTILINE)
    found = run(*arguments, "--method", "kd", "--json").json
    assert (
        found["parts"] == []
        and found["estimate"] is None
        and not found["networks"]["teacher"]["taps"]["tapped"]
    )


def test_training_from_other_weights_says_what_was_dropped(run: Run, make_weights: Maker) -> None:
    weights = make_weights("resnet8_cifar", 7)
    arguments = ("train", "--model", "resnet8_cifar", "--weights", weights, *TINY)
    run(*arguments).assert_refused(2, "for 7 classes and the network has 10", "--reset-head")
    done = run(*arguments, "--reset-head", "--out", "run")
    sentence = (
        "dropped the classifier for 7 classes (fc.bias, fc.weight); a new one for 10 classes is trained"
    )
    assert done.code == 0 and sentence in " ".join(done.err.split()) and sentence in done.out
    assert sentence in json.loads(Path("run/run.json").read_text(encoding="utf-8"))["student"]["notes"][0]
    run(*TEACHER, weights, *TINY).assert_refused(2, "for 7 classes", "fine-tune it first", "--data shapes")


def test_a_narrow_terminal_keeps_names_and_numbers_whole(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=40, highlight=False, markup=False)
    rows = [("tiny-imagenet", 1_281_167, None, "what it is in a few words"), ("stl10", None, 0.5, "less")]
    table(console, ("name", "train images", "share", "what"), rows)
    facts(console, [("hash", "0123456789abcdef" * 4)])
    out = capsys.readouterr().out
    assert "tiny-imagenet  " in out and " 1,281,167  " in out and "…" not in out
    assert "".join(out.split("hash")[1].split()) == "0123456789abcdef" * 4
    assert "what it is in" in out and console.width == 40
