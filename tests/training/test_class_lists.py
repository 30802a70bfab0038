"""A teacher for other classes than the data's is refused, as far as anybody noted what its classes are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tutelage.data import dataset_info
from tutelage.errors import UserError
from tutelage.models.network import create_network
from tutelage.models.weights import save_weights, sidecar_path
from tutelage.training.class_lists import noted_classes

SHAPES = list(dataset_info("shapes").class_names)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(**facts: Any) -> Path:
    path = Path("teacher.safetensors")
    save_weights(path, create_network("resnet8_cifar", 10), {"num_classes": 10, **facts})
    return path


def distil(weights: Path) -> None:
    tutelage.distill(
        teacher="resnet8_cifar",
        teacher_weights=weights,
        student="resnet8_cifar",
        data="shapes",
        few_ratio=0.08,
        epochs=1,
        batch_size=16,
        device="cpu",
        out="run",
    )


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            {"class_names": [*SHAPES[:4], "star", *SHAPES[5:]]},
            "teacher weights teacher.safetensors are for other classes than shapes's: class 4 is 'star' "
            f"there and '{SHAPES[4]}' here",
        ),
        (
            {"class_names": [*SHAPES[1:], SHAPES[0]]},
            f"the same classes in another order than shapes's: class 0 is '{SHAPES[1]}' there",
        ),
        ({"dataset": "cifar10"}, "other classes than shapes's: class 0 is 'airplane' there"),
    ],
)
def test_a_teacher_for_other_classes_is_refused(facts: dict[str, Any], sentence: str) -> None:
    weights = made(**facts)
    with pytest.raises(UserError, match=sentence) as caught:
        distil(weights)
    assert "note these names as 'class_names' in teacher.json" in str(caught.value)
    assert not Path("run").exists()
    with pytest.raises(UserError, match=sentence.replace("teacher weights", "model weights")):
        tutelage.evaluate("resnet8_cifar", weights=weights, data="shapes", device="cpu")


@pytest.mark.parametrize(
    "facts",
    [{}, {"class_names": SHAPES}, {"dataset": "shapes"}, {"dataset": "mine"}, {"dataset": "folder"}],
)
def test_the_same_and_unknown_classes_are_taken(facts: dict[str, Any]) -> None:
    assert (
        tutelage.evaluate("resnet8_cifar", weights=made(**facts), data="shapes", device="cpu")["images"]
        == 200
    )


def test_a_student_may_start_from_weights_for_other_classes() -> None:
    weights = made(dataset="cifar10")
    result = tutelage.train(
        model="resnet8_cifar",
        weights=weights,
        data="shapes",
        few_ratio=0.08,
        epochs=1,
        device="cpu",
        out="run",
    )
    assert result["status"] == "finished"


def test_trained_weights_tell_their_classes(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "val"):
        for name in ("b", "a"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(4):
                place = tmp_path / "images" / split / name / f"{number}.png"
                Image.new("RGB", (32, 32), (number * 20, 0, 0)).save(place)
    settings = ["data.image_size=32", "runtime.workers=0"]
    tutelage.train(
        model="resnet8_cifar",
        data="folder",
        data_dir=tmp_path / "images",
        epochs=1,
        device="cpu",
        out="one",
        settings=settings,
    )
    facts = json.loads(sidecar_path(Path("one") / "student.safetensors").read_text())
    assert noted_classes(facts) == ("a", "b"), facts
    (tmp_path / "images" / "train" / "a").rename(tmp_path / "images" / "train" / "c")
    (tmp_path / "images" / "val" / "a").rename(tmp_path / "images" / "val" / "c")
    with pytest.raises(UserError, match="class 0 is 'a' there and 'b' here"):
        tutelage.evaluate(
            "resnet8_cifar",
            weights="one/student.safetensors",
            data="folder",
            data_dir=tmp_path / "images",
            device="cpu",
            settings=settings,
        )


def test_what_facts_tell() -> None:
    assert noted_classes({"dataset": "cifar10", "num_classes": 10})[9] == "truck"
    assert noted_classes({"dataset": "cifar10", "num_classes": 9}) == ()
    assert noted_classes({"dataset": "nobody's", "num_classes": 9}) == ()
    assert noted_classes({"class_names": ["x", "y"], "num_classes": 2}) == ("x", "y")
    assert noted_classes({}) == ()
