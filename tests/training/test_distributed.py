"""Two processes that train together do what one does alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import together
import tutelage
from tutelage.errors import TutelageError, UserError
from tutelage.runs.record import RunFolder
from tutelage.training import distributed
from tutelage.training.step import relative_difference

PROCESSES = 2


def start(rank: int, arguments: list[str], **more: str) -> subprocess.Popen[str]:
    """Start one of the processes, as ``torchrun`` would."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **place, **more}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True
    )


def together_in(folder: Path, *what: str) -> list[dict[str, Any]]:
    """What each process answers."""
    script = str(Path(together.__file__))
    running = [start(rank, [script, str(folder), *what]) for rank in range(PROCESSES)]
    try:
        said = [process.communicate(timeout=240)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * PROCESSES, "\n".join(said)
    return [torch.load(folder / f"answers{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def answers(folder: Path) -> list[dict[str, Any]]:
    return together_in(folder)


@pytest.mark.parametrize("name", together.METHODS)
def test_loss_gradients_and_memories_are_those_of_one_process(name, answers):
    alone = together.steps(name)
    first, second = (answer[f"steps {name}"] for answer in answers)
    for number, rows in enumerate(together.SIZES):
        expected, got, other = alone[number], first[number], second[number]
        mean = (got["loss"] + other["loss"]) / PROCESSES
        assert float(mean) == pytest.approx(float(expected["loss"]), rel=1e-5), rows
        assert relative_difference(got["gradients"], expected["gradients"]) < 1e-4, rows
        assert relative_difference(other["gradients"], got["gradients"]) == 0, rows
        assert got["memories"].keys() == expected["memories"].keys()
        for key, memory in expected["memories"].items():
            assert torch.equal(got["memories"][key], other["memories"][key]), (rows, key)
            torch.testing.assert_close(got["memories"][key], memory, rtol=1e-5, atol=1e-5)


def test_each_image_is_measured_once(answers):
    alone = together.measured()
    assert [result["images"] for result in alone] == [20, 20, 20]
    for answer in answers:
        for got, expected in zip(answer["measured"], alone, strict=True):
            assert got["loss"] == pytest.approx(expected["loss"], rel=1e-12)
            assert {k: v for k, v in got.items() if k != "loss"} == {
                k: v for k, v in expected.items() if k != "loss"
            }


def test_running_statistics_are_averaged(answers):
    (one, one_after), (two, two_after) = (answer["statistics"] for answer in answers)
    assert not torch.equal(one, two)
    assert torch.equal(one_after, two_after)
    torch.testing.assert_close(one_after, (one + two) / 2)


def test_all_compile_or_none(answers):
    for answer in answers:
        eager, why_not = answer["compiled"]["good"]
        assert not eager and why_not is None
        eager, why_not = answer["compiled"]["bad"]
        assert eager and why_not.startswith("process 1: compiling failed") and "no kernel" in why_not


@pytest.mark.parametrize("kind", ["plain", "mixed", "taught"])
def test_a_run_learns_what_one_process_learns(kind, answers, folder, tmp_path):
    assert {answer[f"{kind} run"] for answer in answers} == {"finished"}
    if kind == "taught":
        together.taught(tmp_path / "alone", folder / "plain" / "student.safetensors")
    else:
        settings = {"plain": together.PLAIN, "mixed": together.MIXED}[kind]
        together.train(tmp_path / "alone", *settings, model="convnext_atto")
    got, expected = (RunFolder(path) for path in (folder / kind, tmp_path / "alone"))
    if kind == "taught":  # each process asks about the images of its own parts
        first, second = (line["teacher_asked"] for line in got.metrics())
        assert 0 < second < first == 35
    assert len(got.metrics()) == len(expected.metrics()) == 2
    for ours, theirs in zip(got.metrics(), expected.metrics(), strict=True):
        assert ours["train"]["loss"] == pytest.approx(theirs["train"]["loss"], rel=1e-4)
        assert ours["train"]["terms"].keys() == theirs["train"]["terms"].keys()
        assert ours["test"]["loss"] == pytest.approx(theirs["test"]["loss"], rel=1e-4)
        assert ours["test"]["images"] == theirs["test"]["images"]
    weights = [load_file(run.path / "student.safetensors") for run in (got, expected)]
    assert relative_difference(*weights) < 1e-4
    facts = got.facts()
    assert facts["protocol"] == {**expected.facts()["protocol"], "processes": PROCESSES}
    assert facts["first_step"]["distil"]["loss"] == pytest.approx(
        expected.facts()["first_step"]["distil"]["loss"], rel=1e-5
    )
    assert sorted(path.name for path in got.path.iterdir()) == sorted(
        path.name for path in expected.path.iterdir()
    )


def test_shards_are_shared_out_as_images_in_memory_are(answers, folder, tmp_path):
    assert {answer["shards run"] for answer in answers} == {"finished"}
    together.on_shards(folder / "shards", tmp_path / "alone")
    got, expected = (RunFolder(path).metrics() for path in (folder / "fruit", tmp_path / "alone"))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours["train"]["loss"] == pytest.approx(theirs["train"]["loss"], rel=1e-4)
        assert ours["test"]["loss"] == pytest.approx(theirs["test"]["loss"], rel=1e-4)
        assert ours["test"]["images"] == theirs["test"]["images"] == 6
    first, second = (answer["missing shards"] for answer in answers)
    assert "no archives of training images" in first
    assert "another process of the run failed at what this one waited for" in second


def test_killed_and_resumed_it_ends_the_same(answers, folder):
    runs = [RunFolder(folder / name) for name in ("whole", "killed")]
    assert {answer[f"{name} run"] for answer in answers for name in ("whole", "killed")} == {"finished"}
    whole, killed = (load_file(run.path / "student.safetensors") for run in runs)
    assert whole.keys() == killed.keys() and all(torch.equal(whole[key], killed[key]) for key in whole)
    whole_metrics, killed_metrics = (
        [{k: v for k, v in line.items() if "second" not in k} for line in run.metrics()] for run in runs
    )
    assert whole_metrics == killed_metrics


def test_a_restart_goes_on_with_its_own_run_alone(answers):
    for answer in answers:
        again, other, status = answer["restarted run"]
        assert "already holds a run" in again and "already holds a run" in other and status == "finished"


def test_what_cannot_be_shared_is_refused(answers):
    for answer in answers:
        assert re.search(r"batch_size 15 .* multiple of 2", answer["odd batch"])
        assert re.search(r"batch_size 14 must be a multiple of 4", answer["odd pairs"])
        assert "sync_batchnorm works on CUDA" in answer["norms"]
        assert answer["writer's error"] == "the writer alone knows"


def test_another_number_of_processes_does_not_resume(answers, folder):
    with pytest.raises(
        UserError, match=r"of a run with 2 processes and can't go on with 1.*nproc-per-node 2"
    ):
        tutelage.resume(folder / "whole")


def test_each_process_takes_its_own_device(monkeypatch):
    cuda = torch.device("cuda")
    assert distributed.own_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for key, value in {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(key, value)
    assert distributed.own_device(cuda) == torch.device("cuda", 1)
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(UserError, match="takes its own"):
        distributed.own_device(torch.device("cuda", 0))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="3 processes need as many CUDA devices, but 2"):
        distributed.own_device(cuda)


def test_the_death_of_another_process_is_told(monkeypatch):
    for key, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(TutelageError, match="lost contact"), distributed.death_told():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3")
    with pytest.raises(RuntimeError, match="other things"), distributed.death_told():
        raise RuntimeError("other things that go wrong")


def test_the_death_of_a_decoding_process_is_told():
    for text in ("(pid(s) 7) exited unexpectedly", "(pid 7) is killed by signal: Killed. "):
        told = pytest.raises(TutelageError, match=r"decodes images is gone .*lower runtime\.workers")
        with told, distributed.death_told():
            raise RuntimeError(f"DataLoader worker {text}")
    with pytest.raises(RuntimeError, match="Caught"), distributed.death_told():
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.")


@pytest.mark.slow
def test_a_step_that_gathers_compiles_whole(tmp_path):
    for answer in together_in(tmp_path, "fullgraph"):
        assert answer["fullgraph"] < 1e-5


SLOWLY = [*together.SETTINGS, "data.few_ratio=0.3", "schedule.epochs=6"]
COMMAND = ["-m", "tutelage", "train", "--model", "resnet8_cifar", "--data", "shapes"]
COMMAND += [part for setting in SLOWLY for part in ("--set", setting)]


def wait_for_epochs(run: RunFolder, count: int, process: subprocess.Popen[str]) -> None:
    while len(run.metrics()) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path):
    meeting, out = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29532"}, tmp_path / "stopped"
    running = [start(rank, [*COMMAND, "--out", str(out)], **meeting) for rank in range(PROCESSES)]
    wait_for_epochs(RunFolder(out), 1, running[0])
    running[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [130, 130], said
    assert all("stopped; continue with: torchrun --nproc-per-node 2" in text for text in said)
    assert RunFolder(out).facts()["status"] == "interrupted"
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["processes"] == len(state["own"]) == PROCESSES and state["position"][2] > 0


@pytest.mark.slow
def test_sigkill_of_one_ends_all_and_the_run_goes_on(tmp_path):
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}
    out = tmp_path / "killed"
    running = [start(rank, [*COMMAND, "--out", str(out)], **meeting) for rank in range(PROCESSES)]
    wait_for_epochs(RunFolder(out), 2, running[0])
    running[1].send_signal(signal.SIGKILL)
    said = running[0].communicate(timeout=60)[1]
    assert running[0].returncode == 1 and "process 0: error: this process lost contact" in said, said
    assert RunFolder(out).facts()["status"] == "failed"
    running = [
        start(r, ["-m", "tutelage", "resume", str(out), "--json"], **meeting) for r in range(PROCESSES)
    ]
    spoken = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert json.loads(spoken[0])["status"] == "finished" and spoken[1] == ""


@pytest.mark.slow
def test_torchrun_restarts_and_the_run_goes_on(tmp_path):
    runner = ["-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES), "--max-restarts", "1"]
    runner += ["--master-port", "29534"]
    runs = {}
    for name in ("whole", "killed"):
        out = tmp_path / name
        process = start(0, [*runner, *COMMAND, "--out", str(out)])
        if name == "killed":
            wait_for_epochs(RunFolder(out), 2, process)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0, said
        runs[name] = load_file(out / "student.safetensors")
        assert len(RunFolder(out).metrics()) == 6
        assert ("going on with" in said) == (name == "killed")
    assert all(torch.equal(runs["killed"][key], value) for key, value in runs["whole"].items())
