"""Going on with a run: with the same teacher, alone, on whatever device, and with a true record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from killing import Killed, killed_after
from toys import BRIEF_RUN, saved_network
from tutelage.errors import UserError
from tutelage.runs.record import RunFolder
from tutelage.training import checkpoints, continuing
from tutelage.training.loop import Trainer
from tutelage.training.progress import Reporter

STEPS = 5  # 70 images in batches of 16


class Noting(Reporter):
    """Shows nothing and remembers the warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warned: list[str] = []

    def warn(self, message: str) -> None:
        self.warned.append(message)


def train(out: Path, *more: str) -> dict[str, Any]:
    return tutelage.train(model="resnet8_cifar", data="shapes", out=out, settings=[*BRIEF_RUN, *more])


def distill(out: Path, teacher: Path, method: str, *more: str) -> dict[str, Any]:
    return tutelage.distill(
        teacher="resnet8_cifar",
        teacher_weights=teacher,
        student="resnet8_cifar",
        method=method,
        data="shapes",
        out=out,
        settings=[*BRIEF_RUN, *more],
    )


def killed(out: Path, step: int, *more: str) -> Path:
    with killed_after(step), pytest.raises(Killed):
        train(out, "runtime.checkpoint_steps=1", *more)
    return out


def test_another_teacher_is_refused(tmp_path: Path) -> None:
    first, second = (saved_network(tmp_path, "resnet8_cifar", seed) for seed in (0, 1))
    given, out = tmp_path / "teacher.safetensors", tmp_path / "run"
    given.write_bytes(first.read_bytes())
    with killed_after(7), pytest.raises(Killed):
        distill(out, given, "kd")
    given.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=r"weights \(.*teacher.safetensors\) are not those that the run in"):
        tutelage.resume(out)
    given.write_bytes(first.read_bytes())
    assert tutelage.resume(out)["status"] == "finished"


def test_on_another_kind_of_device_it_goes_on_with_numbers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is as one of CUDA is: generators of another size, and one more of them."""

    def foreign(generator: torch.Generator) -> dict[str, Any]:
        strange = torch.zeros(16, dtype=torch.uint8)
        return {"device": "cuda", "torch": torch.get_rng_state(), "method": strange, "cuda": strange}

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "random_state", foreign)
        killed(tmp_path / "run", 8)
    described = {"hardware": {"device": "another"}, "amp": "bfloat16", "versions": {}}
    RunFolder(tmp_path / "run").update(**described)
    told = Noting()
    facts = tutelage.resume(tmp_path / "run", reporter=told)
    assert len(told.warned) == 1 and "was on cuda and goes on on cpu" in told.warned[0]
    assert facts["status"] == "finished" and {key: facts[key] for key in described} == described
    (resumed,) = facts["resumed"]
    assert (resumed["phase"], resumed["epoch"], resumed["step"]) == (0, 1, 3)
    assert resumed["amp"] == "float32" and resumed["hardware"]["device"].startswith("cpu")
    assert "torch" in resumed["versions"]


def test_a_run_that_goes_on_the_same_has_nothing_to_note(tmp_path: Path) -> None:
    assert "resumed" not in tutelage.resume(killed(tmp_path / "run", 3))


def test_what_a_killed_writer_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    out = killed(tmp_path / "run", 3)
    left = [".state.pt.ab_12xyz.tmp", ".student_ema_best.json.00000000.tmp", ".run.json.zzzzzzzz.tmp"]
    others = [".notes.txt.ab_12xyz.tmp", ".state.pt.tmp", "state.pt.ab_12xyz.tmp", ".state.pt.ab_12xyz.tmp.z"]
    for name in (*left, *others):
        (out / name).write_text("half")
    tutelage.resume(out)
    there = {path.name for path in out.iterdir()}
    assert there.isdisjoint(left) and there.issuperset(others)


def test_the_record_says_that_a_resumed_run_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen = killed(tmp_path / "run", 3), []
    RunFolder(out).update(status="interrupted", reason="stopped")
    original = Trainer._finish_epoch

    def finish(self: Trainer, record: dict[str, Any]) -> None:
        facts = self.run.facts()
        seen.append((facts["status"], facts["reason"]))
        original(self, record)

    monkeypatch.setattr(Trainer, "_finish_epoch", finish)
    tutelage.resume(out)
    assert set(seen) == {("running", None)}


def test_a_run_is_trained_by_one_process_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    out = killed(tmp_path / "run", 3)
    program = (
        "import sys, time; from pathlib import Path; from tutelage.training.continuing import alone\n"
        "with alone(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(out)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "in\n"
    try:
        with pytest.raises(UserError, match="is being trained by another process"):
            tutelage.resume(out)
    finally:
        other.kill()
        other.wait()
    assert (out / continuing.LOCK).exists()
    assert tutelage.resume(out)["status"] == "finished"
