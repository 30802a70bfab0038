"""Methods with a memory or a first stage, run through the trainer: killed and resumed, parts left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tutelage
from killing import Killed, killed_after, same
from toys import saved_network
from tutelage.runs.record import RunFolder
from tutelage.training.loop import Trainer

SETTINGS = (
    "data.few_ratio=0.05",
    "data.batch_size=16",
    "data.eval_batch_size=100",
    "schedule.epochs=2",
    "optimiser.lr=0.02",
    "runtime.tensorboard=false",
    "runtime.threads=1",
)
METHODS = {
    "crd": ("method.negatives=20", "method.embedding_dim=8", "runtime.checkpoint_steps=2"),
    "ab": ("method.first_epochs=1",),
    "ft": ("method.first_epochs=1", "runtime.checkpoint_steps=3"),
    "fsp": ("method.first_epochs=1",),
    "pat": ("method.dim=16", "runtime.checkpoint_steps=2"),
    "packd": (
        "method.negatives=20",
        "method.embedding_dim=8",
        "method.head_epochs=1",
        "runtime.checkpoint_steps=1",
    ),
}
FIRST = {"ab": "activation boundaries", "ft": "paraphraser", "fsp": "flow matrices"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_network(tmp_path_factory.mktemp("teacher"), "resnet14_cifar")


def run(out: Path, teacher: Path, method: str) -> dict[str, Any]:
    return tutelage.distill(
        student="resnet8_cifar",
        teacher="resnet14_cifar",
        teacher_weights=teacher,
        method=method,
        data="shapes",
        out=out,
        settings=[*SETTINGS, *METHODS[method]],
    )


def state(out: Path) -> dict[str, Any]:
    return torch.load(out / "state.pt", weights_only=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_within_an_epoch_ends_the_same(method, tmp_path, teacher):
    run(tmp_path / "whole", teacher, method)
    with killed_after(3, 8):
        with pytest.raises(Killed):
            run(tmp_path / "cut", teacher, method)
        with pytest.raises(Killed):
            tutelage.resume(tmp_path / "cut")
    tutelage.resume(tmp_path / "cut")
    weights = [load_file(tmp_path / name / "student.safetensors") for name in ("whole", "cut")]
    assert same(*weights)
    parts = [state(tmp_path / name)["method"] for name in ("whole", "cut")]
    assert same(*parts)


@pytest.mark.parametrize("method", FIRST)
def test_what_the_first_stage_trained_stays_as_it_was(method, tmp_path, teacher, monkeypatch):
    """Not even weight decay touches it: parts without a gradient are left alone."""
    seen: dict[str, list[dict[str, torch.Tensor]]] = {"students": [], "paraphraser": []}
    original = Trainer._begin_phase

    def begin(self: Trainer) -> None:
        original(self)
        seen["students"].append({k: v.clone() for k, v in self.nets.student.named_parameters()})
        seen["paraphraser"].append(
            {k: v.clone() for k, v in self.method.named_parameters() if k.startswith("paraphraser")}
        )

    monkeypatch.setattr(Trainer, "_begin_phase", begin)
    run(tmp_path / "run", teacher, method)
    lines = RunFolder(tmp_path / "run").metrics()
    assert [line["phase"] for line in lines] == [FIRST[method], "distil", "distil"]
    assert lines[0]["lr"] == pytest.approx({"ft": 0.01}.get(method, 0.02))
    start, middle, end = seen["students"]
    moved = {key for key in start if not torch.equal(start[key], middle[key])}
    assert moved == (set() if method == "ft" else {key for key in start if ".fc." not in key})
    assert not torch.equal(middle["model.fc.weight"], end["model.fc.weight"])
    start, middle, end = seen["paraphraser"]
    assert all(
        torch.equal(middle[key], end[key]) and not torch.equal(start[key], middle[key]) for key in start
    )
    assert bool(start) == (method == "ft")
