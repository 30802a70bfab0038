"""Methods of several stretches: a head trained first, a forward-only epoch, then the students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import tutelage
from killing import Killed, killed_after, same, without_times
from toys import saved_network
from tutelage.methods import Method, Needs, Phase, teacher_of
from tutelage.models.network import Ask
from tutelage.runs.record import RunFolder
from tutelage.training.keeping import Keeper
from tutelage.training.loop import Trainer

SETTINGS = (
    "data.few_ratio=0.07",
    "data.batch_size=16",
    "data.eval_batch_size=100",
    "schedule.epochs=2",
    "optimiser.lr=0.02",
    "runtime.tensorboard=false",
    "runtime.threads=1",
)


class Staged(Method):
    """A teacher head that learns at a rate of its own, an epoch that only looks, and distillation."""

    students_seen: tuple[int, ...] = ()

    @property
    def needs(self) -> Needs:
        return Needs(teacher=Ask(pooled=True))

    def setup(self, nets: Any, data: Any) -> None:
        self.head = torch.nn.Linear(64, data.num_classes)
        self.register_buffer("looked", torch.zeros(()))

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("head", 1, "teach", trains="method", lr=0.5, part="head", settings=("ce_weight",)),
            Phase("look", epochs=1, update=False),
            Phase("distil"),
        )

    def views(self, batch: Any, generator: torch.Generator) -> Any:
        noise = torch.randn(batch.images.shape, generator=generator)
        return batch._replace(images=batch.images + 0.1 * noise)

    def teach(self, batch: Any, outs: Any, clock: Any) -> dict[str, torch.Tensor]:
        self.students_seen += (len(outs.students),)
        return {"head": F.cross_entropy(self.head(teacher_of(outs).pooled), batch.targets)}

    def forward(self, batch: Any, outs: Any, clock: Any) -> dict[str, torch.Tensor]:
        self.keep("looked", self.looked + 1)
        return {"ce": super().forward(batch, outs, clock)["ce"] * (1 + torch.rand(()))}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_network(tmp_path_factory.mktemp("teacher"), "resnet8_cifar")


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[Staged]:
    """The methods that runs of this test make."""
    import tutelage.training.build as build

    made: list[Staged] = []

    def create(name: str, **settings: Any) -> Method:
        made.append(Staged(Method.Config(ce_weight=settings["ce_weight"])))
        return made[-1]

    monkeypatch.setattr(build, "create_method", create)
    return made


def run(out: Path, teacher: Path, *more: str) -> dict[str, Any]:
    return tutelage.distill(
        student="resnet8_cifar",
        teacher="resnet8_cifar",
        teacher_weights=teacher,
        data="shapes",
        out=out,
        settings=[*SETTINGS, *more],
    )


def test_each_stretch_does_what_it_says(tmp_path, teacher, staged, monkeypatch):
    weights: dict[str, list[torch.Tensor]] = {}
    original = Trainer._train_step

    def watched(self: Trainer, batch: Any, taught: Any, phase: Phase) -> float:
        rate = original(self, batch, taught, phase)
        student = torch.cat([p.detach().flatten() for p in self.nets.student.parameters()])
        weights.setdefault(phase.name, []).append(student)
        weights.setdefault(phase.name + " head", []).append(staged[-1].head.weight.detach().clone())
        return rate

    monkeypatch.setattr(Trainer, "_train_step", watched)
    run(tmp_path / "run", teacher)
    records = RunFolder(tmp_path / "run").metrics()
    assert [(line["phase"], line["epoch"]) for line in records] == [
        ("head", 0),
        ("look", 0),
        ("distil", 0),
        ("distil", 1),
    ]
    assert [line["lr"] for line in records] == pytest.approx([0.5, 0.02, 0.02, 0.01])
    assert [line["test"] is None for line in records] == [True, True, False, False]
    assert set(staged[-1].students_seen) == {0}
    assert torch.equal(weights["head"][0], weights["look"][-1])
    assert not torch.equal(weights["look"][-1], weights["distil"][0])
    assert not torch.equal(weights["head head"][0], weights["head head"][-1])
    assert torch.equal(weights["head head"][-1], weights["look head"][-1])
    assert staged[-1].looked == 3 * len(weights["look"])
    first = RunFolder(tmp_path / "run").facts()["first_step"]
    assert list(first) == ["head", "look", "distil"]
    assert first["head"]["loss"] == first["head"]["head"] != records[0]["train"]["loss"]


def test_a_run_stopped_in_each_stretch_ends_the_same(tmp_path, teacher, staged):
    run(tmp_path / "whole", teacher, "runtime.reuse_stages=false")
    out = tmp_path / "killed"
    with killed_after(3, 9, 14):
        with pytest.raises(Killed):
            run(out, teacher, "runtime.checkpoint_steps=1", "runtime.reuse_stages=false")
        for _ in range(2):
            with pytest.raises(Killed):
                tutelage.resume(out)
    tutelage.resume(out)
    got, expected = (load_file(folder / "student.safetensors") for folder in (out, tmp_path / "whole"))
    assert same(got, expected)
    assert without_times(out) == without_times(tmp_path / "whole")


def test_a_run_whose_phases_are_all_over_resumes_to_itself(tmp_path, teacher, staged, monkeypatch):
    out, update = tmp_path / "run", RunFolder.update

    def killed_at_the_end(self: RunFolder, **changes: Any) -> None:
        if changes.get("status") == "finished":
            raise Killed
        update(self, **changes)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "update", killed_at_the_end)
        with pytest.raises(Killed):
            run(out, teacher)
    weights, lines = load_file(out / "student.safetensors"), without_times(out)
    finished = tutelage.resume(out)
    assert finished["status"] == "finished" and len(lines) == 4
    assert tutelage.resume(out) == finished
    assert same(load_file(out / "student.safetensors"), weights) and without_times(out) == lines


def test_the_best_epoch_is_one_of_the_last_phase(tmp_path, teacher, monkeypatch):
    merits = iter([30.0, 40.0])  # of the second epoch of distillation, and of the first
    monkeypatch.setattr(Keeper, "_merit", lambda self, measured: next(merits))
    facts = tutelage.distill(
        student="resnet8_cifar",
        teacher="resnet8_cifar",
        teacher_weights=teacher,
        method="ab",
        data="shapes",
        out=tmp_path / "run",
        settings=[*SETTINGS, "method.first_epochs=1"],
    )
    lines, best = RunFolder(tmp_path / "run").metrics(), facts["summary"]["best"]
    assert lines[0]["phase"] != "distil" and lines[0]["test"] is not None
    assert (best["phase"], best["epoch"], best["test"]) == ("distil", 0, lines[1]["test"])


def phases_of(out: Path) -> list[str]:
    return [line["phase"] for line in RunFolder(out).metrics()]


def test_a_head_is_trained_once_for_the_same_teacher_data_and_settings(tmp_path, teacher, staged):
    run(tmp_path / "first", teacher)
    run(tmp_path / "second", teacher, "schedule.epochs=3")
    run(tmp_path / "other", teacher, "data.few_ratio=0.08")
    run(tmp_path / "set", teacher, "method.ce_weight=0.5")
    assert [phases_of(tmp_path / name)[0] for name in ("first", "second", "other", "set")] == [
        "head",
        "look",
        "head",
        "head",
    ]
    facts = RunFolder(tmp_path / "second").facts()
    assert list(facts["taken_over"]) == ["head"] and facts["status"] == "finished"
    assert "taken_over" not in RunFolder(tmp_path / "first").facts()


def test_a_head_taken_over_changes_nothing_that_follows(tmp_path, teacher, staged):
    for name, choice in (("alone", "false"), ("first", "true"), ("second", "true")):
        run(tmp_path / name, teacher, f"runtime.reuse_stages={choice}")
    assert phases_of(tmp_path / "alone") == phases_of(tmp_path / "first") != phases_of(tmp_path / "second")
    alone, first, second = (
        load_file(tmp_path / name / "student.safetensors") for name in ("alone", "first", "second")
    )
    for name, value in alone.items():
        assert torch.equal(first[name], value) and torch.equal(second[name], value)


def test_a_run_that_breaks_says_so_in_its_record(tmp_path, teacher, staged, monkeypatch):
    def broken(self: Staged, batch: Any, outs: Any, clock: Any) -> dict[str, torch.Tensor]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Staged, "teach", broken)
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", teacher)
    facts = RunFolder(tmp_path / "run").facts()
    assert (facts["status"], facts["reason"]) == ("failed", "RuntimeError: out of memory")
