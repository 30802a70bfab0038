"""What an epoch's record says where the epoch was interrupted."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from killing import Killed, killed_after
from toys import BRIEF_RUN, draw_folders
from tutelage.recipes import resolve
from tutelage.runs.record import RunFolder
from tutelage.training.loading import load_data
from tutelage.training.loop import Trainer
from tutelage.training.stopping import Interrupted

STEPS = 5  # 70 images in batches of 16


def test_time_before_a_stop_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._train_step

    def slow(self: Trainer, batch: Any, taught: Any, phase: Any) -> float:
        time.sleep(0.2)
        rate = original(self, batch, taught, phase)
        if stopping and self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate

    monkeypatch.setattr(Trainer, "_train_step", slow)
    out, stopping = tmp_path / "run", True
    with pytest.raises(Interrupted):
        tutelage.train(
            model="resnet8_cifar", data="shapes", out=out, settings=[*BRIEF_RUN, "schedule.epochs=1"]
        )
    stopping = False
    summary = tutelage.resume(out)["summary"]
    (line,) = RunFolder(out).metrics()
    assert line["seconds"] >= STEPS * 0.2 and summary["training_seconds"] >= STEPS * 0.2
    assert summary["wall_seconds"] >= STEPS * 0.2
    assert line["images_per_second"] <= 70 / (STEPS * 0.2)


def test_the_only_image_of_what_is_left_cannot_be_read(tmp_path: Path) -> None:
    files = draw_folders(tmp_path / "files")
    settings = [
        "data.batch_size=7",  # 15 images: the last batch has one
        "data.image_size=32",
        "schedule.epochs=2",
        "runtime.tensorboard=false",
        "runtime.workers=0",
        "runtime.checkpoint_steps=2",
    ]
    asked = {"student.name": "resnet8_cifar", "data.name": "folder", "data.dir": str(files)}
    data = load_data(resolve(None, asked, settings), torch.device("cpu"))
    last = int(data.epoch_order(0, 0).rows[-1])
    Path(data.splits["train"].name(last)).write_bytes(b"broken")  # type: ignore[attr-defined]
    arguments = {"model": "resnet8_cifar", "data": "folder", "data_dir": files, "settings": settings}
    tutelage.train(**arguments, out=tmp_path / "whole")  # type: ignore[arg-type]
    with killed_after(2), pytest.raises(Killed):
        tutelage.train(**arguments, out=tmp_path / "run")  # type: ignore[arg-type]
    tutelage.resume(tmp_path / "run")
    ours, theirs = (RunFolder(tmp_path / name).metrics() for name in ("run", "whole"))
    assert [line["lr"] for line in ours] == [line["lr"] for line in theirs]
