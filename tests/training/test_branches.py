"""Runs with branches, rotations and peers: what is measured, saved, loaded and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tutelage
from killing import Killed, killed_after, same, without_times
from toys import BRIEF_RUN
from training.test_resume import weights
from tutelage.errors import UserError
from tutelage.recipes import resolve
from tutelage.runs.record import RunFolder

BRIEF = (*BRIEF_RUN, "schedule.epochs=2", "data.batch_size=35")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    tutelage.train(model="resnet8_cifar", data="shapes", out=out, settings=[*BRIEF, "schedule.epochs=1"])
    return out / "student.safetensors"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, plain: Path) -> Path:
    """Branches trained on a frozen backbone."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    tutelage.train(
        model="resnet8_cifar",
        weights=str(plain),
        method="hsakd_teacher",
        data="shapes",
        out=out,
        settings=[*BRIEF, "method.frozen=true", "selection=joint"],
    )
    return out


def test_a_frozen_backbone_stays_the_same_to_the_bit(plain, teacher):
    assert same(load_file(plain), load_file(teacher / "student.safetensors"))
    first, last = (
        m["train"]["terms"] for m in (RunFolder(teacher).metrics()[0], RunFolder(teacher).metrics()[-1])
    )
    assert last["joint"] < first["joint"]
    aux = load_file(teacher / "student_aux.safetensors")
    assert {key.partition(".")[0] for key in aux} == {"backbone", "auxiliary_classifier"}


def test_branches_are_measured_and_can_choose_the_best_epoch(teacher):
    run = RunFolder(teacher)
    joint = [max(line["test"]["branches"]["joint_top1"]) for line in run.metrics()]
    assert len(run.metrics()[0]["test"]["branches"]["class_top1"]) == 3
    best = run.facts()["summary"]["best"]
    assert best["epoch"] == joint.index(max(joint))
    assert "joint" in best["note"]


def test_evaluating_a_file_with_branches_measures_these_too(teacher):
    last = RunFolder(teacher).metrics()[-1]["test"]
    weights = teacher / "student_aux.safetensors"
    found = tutelage.evaluate("resnet8_cifar", weights=weights, data="shapes", batch_size=100)
    assert found["branches"] == last["branches"]
    assert found["top1"] == last["top1"]
    upright = tutelage.evaluate(
        "resnet8_cifar", weights=weights, data="shapes", settings=["data.branch_evaluation=false"]
    )
    assert "branches" not in upright and upright["top1"] == last["top1"]


@pytest.mark.parametrize("method", ["hsakd", "dpcd"])
def test_students_learn_from_it_and_resume_exactly(teacher, tmp_path, method):
    flags = {
        "teacher": "resnet8_cifar",
        "teacher_weights": str(teacher / "student_aux.safetensors"),
        "student": "resnet8_cifar",
        "method": method,
        "data": "shapes",
    }
    facts = tutelage.distill(**flags, out=tmp_path / "whole", settings=BRIEF)
    terms = facts["summary"]["last"]["train"]["terms"]
    assert all(torch.isfinite(torch.tensor(value)) for value in terms.values())
    with killed_after(3, saved=False), pytest.raises(Killed):
        tutelage.distill(**flags, out=tmp_path / "killed", settings=[*BRIEF, "runtime.checkpoint_steps=1"])
    tutelage.resume(tmp_path / "killed")
    for name in ("student.safetensors", "student_aux.safetensors"):
        assert same(weights(tmp_path / "killed", name), weights(tmp_path / "whole", name))
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")


def test_the_loop_writes_what_a_method_keeps(teacher, tmp_path):
    facts = tutelage.distill(
        teacher="resnet8_cifar",
        teacher_weights=str(teacher / "student.safetensors"),
        student="resnet8_cifar",
        method="dpcd",
        data="shapes",
        out=tmp_path / "run",
        settings=BRIEF,
    )
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["method"]
    remembered = torch.isfinite(state["history.values"]).sum()
    assert remembered == 2 * facts["protocol"]["train_images"]


def test_peers_of_another_family_are_trained_measured_saved_and_resumed(tmp_path):
    flags = {"student": "resnet8_cifar", "peers": ["wrn_16_1_cifar"], "data": "shapes"}
    facts = tutelage.mutual(**flags, out=tmp_path / "whole", settings=BRIEF)
    assert [peer["name"] for peer in facts["peers"]] == ["wrn_16_1_cifar"]
    assert len(facts["summary"]["last"]["peers"]) == 1
    with killed_after(3, saved=False), pytest.raises(Killed):
        tutelage.mutual(**flags, out=tmp_path / "killed", settings=[*BRIEF, "runtime.checkpoint_steps=1"])
    tutelage.resume(tmp_path / "killed")
    for name in ("student.safetensors", "peer1.safetensors", "peer1_best_aux.safetensors"):
        assert same(weights(tmp_path / "killed", name), weights(tmp_path / "whole", name))


def test_a_missing_peer_is_made_like_the_student(tmp_path):
    settings = [*BRIEF, "schedule.epochs=1"]
    facts = tutelage.mutual(student="resnet8_cifar", data="shapes", out=tmp_path / "run", settings=settings)
    first, second = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("student", "peer1"))
    assert first.keys() == second.keys() and not same(first, second)
    assert [peer["name"] for peer in facts["peers"]] == ["resnet8_cifar"]


def test_peers_beside_a_resolved_recipe_are_refused(tmp_path):
    recipe = resolve(None, {"student.name": "resnet8_cifar", "method.name": "hssakd", "data.name": "shapes"})
    with pytest.raises(UserError, match="no further flags, settings or peers"):
        tutelage.mutual(recipe, peers=["wrn_16_1_cifar"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused_before_training(plain, tmp_path):
    def refused(sentence, call, settings=BRIEF, **flags):
        with pytest.raises(UserError, match=sentence):
            call(**flags, data="shapes", out=tmp_path / "run", settings=settings)

    given = {"teacher_weights": str(plain), "student": "resnet8_cifar", "method": "hsakd"}
    refused("holds no branches", tutelage.distill, teacher="resnet8_cifar", **given)
    refused("has no weights", tutelage.train, model="resnet8_cifar", method="hsakd_teacher",
            settings=[*BRIEF, "method.frozen=true"])  # fmt: skip
    refused("networks have 3 and 4", tutelage.mutual, student="resnet8_cifar", peers=["vgg8_cifar"])
    refused("selection 'joint' needs branches", tutelage.train, model="resnet8_cifar",
            settings=[*BRIEF, "selection=joint"])  # fmt: skip
    assert not (tmp_path / "run" / "run.json").exists()
