"""A run that was killed or stopped and then resumed ends bit-identical to one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tutelage
from killing import Killed, killed_after, same, without_times
from toys import BRIEF_RUN
from tutelage.errors import UserError
from tutelage.methods import Method
from tutelage.runs.record import RunFolder
from tutelage.training.loop import Trainer
from tutelage.training.stopping import Interrupted

STEPS = 5  # 70 images in batches of 16


def run(out: Path, *more: str) -> dict:
    return tutelage.train(model="resnet8_cifar", data="shapes", out=out, settings=[*BRIEF_RUN, *more])


def weights(out: Path, name: str = "student.safetensors") -> dict[str, torch.Tensor]:
    return load_file(out / name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, "runtime.ema_decay=0.9")
    return out


@pytest.mark.parametrize("kills", [(2, 7, 4), (STEPS, STEPS + 1, 1)])
def test_killed_three_times(whole, tmp_path, kills):
    out, started = tmp_path / "run", False
    for steps in kills:
        with killed_after(steps, saved=False), pytest.raises(Killed):
            tutelage.resume(out) if started else run(out, "runtime.ema_decay=0.9")
        started = True
    tutelage.resume(out)
    assert same(weights(out), weights(whole))
    assert same(weights(out, "student_best.safetensors"), weights(whole, "student_best.safetensors"))
    assert without_times(out) == without_times(whole)
    assert len(RunFolder(out).metrics()) == 3


def test_killed_between_checkpoints_within_an_epoch(whole, tmp_path):
    out = tmp_path / "run"
    with killed_after(9, saved=False), pytest.raises(Killed):
        run(out, "runtime.ema_decay=0.9", "runtime.checkpoint_steps=3")
    tutelage.resume(out)
    assert same(weights(out), weights(whole))
    assert without_times(out) == without_times(whole)


def test_stop_signal_saves_in_the_middle_of_an_epoch(whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    original = Trainer._train_step

    def train_step(self, batch, taught, phase):
        rate = original(self, batch, taught, phase)
        if (self.epoch, self.step) == (1, 3):
            os.kill(os.getpid(), signal.SIGTERM)
        return rate

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", train_step)
        with pytest.raises(Interrupted, match="tutelage resume"):
            run(out, "runtime.ema_decay=0.9")
    assert RunFolder(out).facts()["status"] == "interrupted"
    assert torch.load(out / "state.pt", weights_only=True)["position"] == [0, 1, 3]
    facts = tutelage.resume(out)
    assert facts["status"] == "finished"
    assert same(weights(out), weights(whole))
    assert without_times(out) == without_times(whole)


class Noisy(Method):
    """Draws from the method's generator, keeps a history in a buffer and uses dropout's random numbers."""

    def setup(self, nets, data):
        self.register_buffer("history", torch.zeros(4))

    def views(self, batch, generator):
        noise = torch.randn(batch.images.shape, generator=generator)
        return batch._replace(images=batch.images + 0.1 * noise)

    @property
    def needs(self):
        from tutelage.methods import Needs

        return Needs(teacher=None)

    def forward(self, batch, outs, clock):
        loss = super().forward(batch, outs, clock)["ce"]
        with torch.no_grad():
            self.history.copy_(torch.roll(self.history, 1))
            self.history[0] = loss.detach()
        return {"ce": loss * (1 + torch.rand(())), "past": self.history.mean() * outs.student.logits.mean()}


def test_generators_and_buffers_of_a_method_come_back(tmp_path, monkeypatch):
    import tutelage.training.build as build

    monkeypatch.setattr(build, "create_method", lambda name, **settings: Noisy(Method.Config(**settings)))
    run(tmp_path / "whole")
    with killed_after(8, saved=False), pytest.raises(Killed):
        run(tmp_path / "killed", "runtime.checkpoint_steps=2")
    tutelage.resume(tmp_path / "killed")
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_a_finished_run_resumes_to_itself(whole):
    before = weights(whole)
    facts = tutelage.resume(whole)
    assert facts["status"] == "finished" and same(before, weights(whole))


def test_a_damaged_state_is_refused(tmp_path):
    out = tmp_path / "run"
    run(out, "schedule.epochs=1")
    state = out / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"state\.pt is damaged"):
        tutelage.resume(out)


@pytest.mark.slow
def test_sigkill_at_three_random_moments(tmp_path):
    settings = [*BRIEF_RUN, "data.few_ratio=0.3", "schedule.epochs=12"]
    arguments = ["train", "--model", "resnet8_cifar", "--data", "shapes"]
    arguments += [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "tutelage"]
    subprocess.run([*command, *arguments, "--out", str(tmp_path / "whole")], check=True)
    out = tmp_path / "killed"
    choice, kills = random.Random(0), 0
    following = [*command, *arguments, "--out", str(out)]
    while kills < 3:
        process = subprocess.Popen(following)
        metrics, seen = out / "metrics.jsonl", len(RunFolder(out).metrics())
        while process.poll() is None and (not metrics.exists() or len(RunFolder(out).metrics()) <= seen):
            time.sleep(0.01)
        time.sleep(choice.uniform(0, 0.5))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        following = [*command, "resume", str(out)]
    subprocess.run(following, check=True)
    assert same(weights(out), weights(tmp_path / "whole"))
