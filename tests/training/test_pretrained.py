"""Starting from pretrained weights: of timm's hub, of a file, with their classifier or a new one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tutelage
from tutelage.errors import TutelageError, UserError
from tutelage.models.creation import create_network
from tutelage.models.fingerprint import weights_hash
from tutelage.models.pretrained import published_facts
from tutelage.models.weights import read_sidecar, save_weights
from tutelage.recipes import validate
from tutelage.recipes.schema import ModelRecipe
from tutelage.training.build import Parts, assemble
from tutelage.training.preprocessing import own_normalisation

NAME = "test_convnext"
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SWIFT = (
    "data.few_ratio=0.04",
    "data.batch_size=20",
    "schedule.epochs=1",
    "runtime.tensorboard=false",
    "runtime.threads=1",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for 1000 classes, as a file without a note."""
    path = tmp_path_factory.mktemp("original") / "original.pth"
    torch.manual_seed(3)
    torch.save(create_network(NAME, 1000).state_dict(), path)
    return path


@pytest.fixture
def hub(original: Path) -> dict[str, Any]:
    """Arguments by which timm takes that file for what lies on the hub."""
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(original)}}


def built(**student: Any) -> Parts:
    values = {"task": "train", "data": {"name": "shapes", "few_ratio": 0.04}, "method": {"name": "none"}}
    return assemble(validate({**values, "student": {"name": NAME, **student}}))


def state_of(parts: Parts) -> dict[str, Tensor]:
    return parts.nets.student.model.state_dict()


def test_pretrained_weights_get_a_head_for_the_datas_classes_and_it_is_said(
    original: Path, hub: dict[str, Any]
) -> None:
    parts = built(args=hub)
    source, found = torch.load(original, weights_only=True), state_of(parts)
    body = [key for key in source if not key.startswith("head.fc")]
    assert all(torch.equal(found[key], source[key]) for key in body) and len(found["head.fc.weight"]) == 10
    assert parts.nets.student.notes == (
        f"student's pretrained weights ({NAME}): dropped the classifier for 1000 classes (head.fc.bias, "
        "head.fc.weight); a new one for 10 classes is trained",
    )


def test_the_rest_of_the_network_does_not_depend_on_fetching(hub: dict[str, Any]) -> None:
    fresh, after_fresh = state_of(built()), torch.rand(())
    fetched, after_fetched = state_of(built(args=hub)), torch.rand(())
    assert after_fresh == after_fetched
    assert torch.equal(fresh["head.fc.weight"], fetched["head.fc.weight"])
    assert not torch.equal(fresh["stem.0.weight"], fetched["stem.0.weight"])


def test_a_file_stands_for_the_pretrained_weights(original: Path) -> None:
    parts = built(weights=str(original), args={"pretrained": True})
    source = torch.load(original, weights_only=True)
    assert torch.equal(state_of(parts)["stem.0.weight"], source["stem.0.weight"])
    assert "dropped the classifier for 1000 classes" in parts.nets.student.notes[0]


def test_a_file_alone_keeps_its_head_unless_told_otherwise(original: Path) -> None:
    with pytest.raises(UserError, match=r"for 1000 classes and the network has 10.*--reset-head"):
        built(weights=str(original))
    parts = built(weights=str(original), reset_head=True)
    assert "dropped the classifier for 1000 classes" in parts.nets.student.notes[0]


def test_a_new_head_for_as_many_classes(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    torch.manual_seed(5)
    save_weights(path, create_network(NAME, 10), {})
    kept, reset = state_of(built(weights=str(path))), state_of(built(weights=str(path), reset_head=True))
    assert torch.equal(kept["head.norm.weight"], reset["head.norm.weight"])
    assert not torch.equal(kept["head.fc.weight"], reset["head.fc.weight"])


def test_there_is_no_head_to_drop_without_weights() -> None:
    with pytest.raises(UserError, match="no weights whose classifier could be dropped"):
        built(reset_head=True)


def test_pretrained_networks_see_their_own_normalisation_unless_told_otherwise(hub: dict[str, Any]) -> None:
    facts = published_facts(NAME)
    assert facts is not None and (facts.mean, facts.std) == HALVES and facts.num_classes == 1000
    assert built(args=hub).normalisation == HALVES
    shapes = built().normalisation
    assert shapes != HALVES
    parts = built(args=hub, own_normalisation=False)
    assert parts.normalisation == shapes and parts.nets.student.preprocess is None
    assert own_normalisation(ModelRecipe(name="resnet8_cifar", args={"pretrained": True})) is None


def teacher(**settings: Any) -> Parts:
    values = {"task": "distill", "data": {"name": "shapes", "few_ratio": 0.04}, "method": {"name": "kd"}}
    part = {"name": NAME, **settings}
    return assemble(validate({**values, "student": {"name": "resnet8_cifar"}, "teacher": part}))


def test_a_teacher_of_other_classes_is_refused_with_what_to_do(original: Path, hub: dict[str, Any]) -> None:
    how = rf"fine-tune it first: tutelage train --model {NAME} --weights \S+ --reset-head --data shapes"
    with pytest.raises(UserError, match=how):
        teacher(weights=str(original))
    with pytest.raises(UserError, match=rf"tutelage train --model {NAME} --pretrained --data shapes"):
        teacher(args=hub)
    with pytest.raises(UserError, match="a frozen network can't learn a new classifier"):
        teacher(weights=str(original), reset_head=True)


def test_no_connection_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TutelageError, match=rf"pretrained weights of '{NAME}' can't be had.*file") as error:
        built(args={"pretrained": True})
    assert "\n" not in str(error.value) and error.value.exit_code == 1


def test_the_record_says_where_the_weights_are_from(tmp_path: Path, hub: dict[str, Any]) -> None:
    overlay = hub["pretrained_cfg_overlay"]
    run = tutelage.train(
        model=NAME,
        pretrained=True,
        data="shapes",
        out=tmp_path / "run",
        settings=[*SWIFT, f"student.args.pretrained_cfg_overlay={json.dumps(overlay)}"],
    )
    student = run["student"]
    assert student["pretrained"] and "dropped the classifier" in student["notes"][0]
    assert student["weights_hash"] == weights_hash(state_of(built(args=hub)))
    weights = tmp_path / "run" / "student.safetensors"
    assert len(load_file(weights)["head.fc.weight"]) == 10
    assert (read_sidecar(weights)["mean"], read_sidecar(weights)["std"]) == ([0.5] * 3, [0.5] * 3)
    measured = tutelage.evaluate(NAME, weights=weights, data="shapes")
    assert measured["loss"] == pytest.approx(run["summary"]["last"]["test"]["loss"], rel=1e-3)
