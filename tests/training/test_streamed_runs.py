"""Runs on images that stay in their files: gone on with exactly, and stopped by a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tutelage
from killing import Killed, killed_after
from packing import write_shards
from toys import draw_folders, draw_image
from tutelage.runs.record import RunFolder

SETTINGS = [
    "student.args={depths: [1, 1, 1, 1], dims: [8, 12, 16, 24], drop_rate: 0.3}",
    "data.image_size=32",
    "data.batch_size=4",
    "schedule.epochs=2",
    "optimiser.lr=0.01",
    "runtime.tensorboard=false",
    "runtime.checkpoint_steps=1",
]


@pytest.mark.parametrize("name", ["folder", "wds"])
def test_killed_within_an_epoch_it_ends_the_same(name: str, tmp_path: Path) -> None:
    """With dropout, which draws from the generator that a loader could disturb, and with other workers."""
    files = draw_folders(tmp_path / "folder")
    folder = files if name == "folder" else write_shards(files, tmp_path / "wds")

    def train(out: Path, workers: int) -> None:
        settings = [*SETTINGS, f"runtime.workers={workers}"]
        tutelage.train(model="convnext_atto", data=name, data_dir=folder, out=out, settings=settings)

    train(tmp_path / "whole", 0)
    with killed_after(6), pytest.raises(Killed):
        train(tmp_path / "killed", 2)
    position = torch.load(tmp_path / "killed" / "state.pt", weights_only=True)["position"]
    assert position == [0, 1, 2]
    tutelage.resume(tmp_path / "killed")
    whole, killed = (load_file(tmp_path / run / "student.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_workers_too_lets_the_run_finish_its_step(
    what: signal.Signals, tmp_path: Path
) -> None:
    """With images so large that the run waits for its workers most of the time."""
    folder, out = draw_folders(tmp_path / "files"), tmp_path / "run"
    for path in sorted((folder / "train").rglob("*.*")):
        draw_image(path, 1, (2000, 1500))
    command = [sys.executable, "-m", "tutelage", "train", "--model", "convnext_atto", "--data", "folder"]
    command += ["--data-dir", str(folder), "--out", str(out), "--set", "runtime.workers=2"]
    for setting in (*SETTINGS, "schedule.epochs=500"):
        command += ["--set", setting]
    paths = os.pathsep.join(path for path in sys.path if path)
    running = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    run = RunFolder(out)
    while len(run.metrics()) < 2:
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    os.killpg(running.pid, what)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and run.facts()["status"] == "interrupted", said
    assert torch.load(out / "state.pt", weights_only=True)["position"][1] >= 2
