"""How the command line ends: sentences, codes, and what --debug and --json add."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tutelage.errors import TutelageError, UserError
from tutelage.training.loop import Trainer

from .conftest import TINY, Run


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("a wrong name"), 2, "error: a wrong name"),
        (TutelageError("two\n  lines"), 1, "error: two lines"),
        (
            OSError(28, "No space left on device", "f.bin"),
            1,
            "error: can't use f.bin: No space left on device",
        ),
        (PermissionError(13, "Permission denied"), 1, "error: the system refused a file operation"),
        (KeyError("odd"), 1, "error: unexpected KeyError: 'odd'; run again with --debug"),
        (EOFError(), 1, "error: unexpected EOFError; run again with --debug"),
        (MemoryError(), 1, "error: out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            1,
            "error: out of memory",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_exception_becomes_a_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, sentence: str
) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr("tutelage.training.describe.list_methods", fail)
    result = run("list", "methods", "--json")
    assert result.code == code
    (line,) = result.err.strip().splitlines()
    assert line.startswith(sentence)
    told = line.removeprefix("error: ")
    assert result.json == {"error": told, "exit_code": code}


def test_out_of_gpu_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("tutelage.training.describe.list_methods", fail)
    run("list", "methods").assert_refused(1, "out of memory", "--batch-size")


@pytest.mark.parametrize(
    "arguments", [("--debug", "show", "nix"), ("show", "--debug", "nix"), ("show", "nix", "--debug")]
)
def test_debug_shows_the_traceback_anywhere(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert "Traceback" in result.err and "UserError" in result.err
    assert result.err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debug_by_environment(run: Run, monkeypatch: pytest.MonkeyPatch, value: str, shown: bool) -> None:
    monkeypatch.setenv("TUTELAGE_DEBUG", value)
    assert ("Traceback" in run("show", "nix").err) == shown


def test_usage_errors_speak_json_too(run: Run) -> None:
    result = run("train", "--epochs", "many", "--json")
    assert result.json["exit_code"] == 2 and "--epochs" in result.json["error"]


def process(*arguments: str, **options: Any) -> tuple[int, str]:
    """Exit code and stderr of a process of its own; these commands need no PyTorch and start at once."""
    done = subprocess.run(
        [sys.executable, "-m", "tutelage", *arguments], stderr=subprocess.PIPE, text=True, **options
    )
    return done.returncode, done.stderr


def test_the_process_has_the_exit_code() -> None:
    code, err = process("trian")
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_closed_pipe_is_silent() -> None:
    read, write = os.pipe()
    os.close(read)
    assert process("distill", "--help", stdout=write) == (1, "")
    os.close(write)


def test_a_stdout_that_takes_nothing() -> None:
    with open(os.devnull) as read_only:
        code, err = process("--version", stdout=read_only)
    assert code == 1
    assert err.startswith("error: ") and os.strerror(errno.EBADF) in err and err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_can_be_resumed(run: Run, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    save = Trainer.save

    def save_and_stop(trainer: Trainer) -> None:
        save(trainer)
        if trainer.step == 0:
            os.kill(os.getpid(), number)

    arguments = ("train", "--model", "resnet8_cifar", *TINY, "--epochs", "2", "--out", "run")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save_and_stop)
        stopped = run(*arguments, "--json")
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == "stopped; continue with: tutelage resume run"
    assert stopped.json["exit_code"] == 130
    resumed = run("resume", "run", "--json")
    assert (resumed.code, resumed.json["status"]) == (0, "finished")
