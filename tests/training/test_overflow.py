"""What has overflowed is never saved over a good state, nor kept for later runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from toys import BRIEF_RUN, saved_network
from tutelage.errors import TutelageError
from tutelage.files import cache_folder
from tutelage.methods import Phase
from tutelage.runs.record import RunFolder
from tutelage.training.loop import Trainer
from tutelage.training.stopping import check_sound


def overflowing(
    monkeypatch: pytest.MonkeyPatch,
    when: Callable[[Trainer, Phase], bool],
    stop_at: tuple[int, int] | None = None,
) -> None:
    """Let a gradient overflow in one step, after whose loss nothing is finite any more."""
    original = Trainer._train_step

    def step(self: Trainer, batch: Any, taught: Any, phase: Phase) -> float:
        hooks = []
        if when(self, phase):
            hooks = [self.trained_parameters[0].register_hook(lambda gradient: gradient * float("inf"))]
        rate = original(self, batch, taught, phase)
        for hook in hooks:
            hook.remove()
        if (self.epoch, self.step) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate

    monkeypatch.setattr(Trainer, "_train_step", step)


def train(out: Path, *more: str) -> dict[str, Any]:
    return tutelage.train(model="resnet8_cifar", data="shapes", out=out, settings=[*BRIEF_RUN, *more])


def saved(out: Path) -> tuple[list[int], bool]:
    state = torch.load(out / "state.pt", weights_only=True)
    return state["position"], all(bool(value.isfinite().all()) for value in state["student0"].values())


def test_a_checkpoint_after_the_step_that_overflowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflowing(monkeypatch, lambda trainer, phase: (trainer.epoch, trainer.step) == (1, 1))
    with pytest.raises(TutelageError, match=r"weights became .* in epoch 2 by step 2; the last good state"):
        train(tmp_path / "run", "runtime.checkpoint_steps=1")
    assert saved(tmp_path / "run") == ([0, 1, 1], True)
    monkeypatch.undo()
    assert tutelage.resume(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize("step", [2, 4])
def test_a_stop_asked_for_after_it(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By step 4 the loss tells, before that the weights alone do."""
    overflowing(monkeypatch, lambda trainer, phase: (trainer.epoch, trainer.step) == (1, 1), (1, step))
    with pytest.raises(TutelageError, match=r"in epoch 2 by step .* the last good state is in"):
        train(tmp_path / "run")
    assert saved(tmp_path / "run") == ([0, 1, 0], True)
    assert RunFolder(tmp_path / "run").facts()["status"] == "failed"


def test_a_first_stage_that_overflowed_in_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflowing(
        monkeypatch, lambda trainer, phase: bool(phase.part) and trainer.step == trainer.steps_per_epoch - 1
    )
    with pytest.raises(TutelageError, match="weights became"):
        tutelage.distill(
            teacher="resnet8_cifar",
            teacher_weights=saved_network(tmp_path, "resnet8_cifar"),
            student="resnet8_cifar",
            method="packd",
            data="shapes",
            out=tmp_path / "run",
            settings=[*BRIEF_RUN, "method.head_epochs=1", "method.negatives=8"],
        )
    assert not (cache_folder() / "stages").exists()


def test_a_buffer_may_mark_the_unknown_with_an_infinity(tmp_path: Path) -> None:
    module = torch.nn.Linear(1, 1)
    module.register_buffer("history", torch.tensor([torch.inf]))
    check_sound([module], 0, 0, tmp_path / "state.pt")
    module.register_buffer("spoilt", torch.tensor([torch.nan]))
    with pytest.raises(TutelageError, match="no state was saved yet"):
        check_sound([module], 0, 0, tmp_path / "state.pt")
