"""A command line to call and small files to call it with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tutelage.cli import main

TINY = ("--data", "shapes", "--few-ratio", "0.08", "--epochs", "1", "--batch-size", "16", "--device", "cpu")
"""Eighty images, five steps."""


class Result(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object on the last line of stdout."""
        return json.loads(self.out.splitlines()[-1])

    def assert_refused(self, code: int, *parts: str) -> None:
        """The command ended with ``code`` and one sentence, which holds all ``parts``."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code == code, self
        assert len(errors) == 1 and self.err.splitlines()[-1] == errors[0], self.err
        assert "Traceback" not in self.err and "--debug" not in errors[0], self.err
        for part in parts:
            assert part in errors[0]


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the command line with these arguments."""

    def call(*arguments: Any) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands make their folders in a temporary place, and one thread is enough for them."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Random weights of a network as a file; ``facts`` go into the sidecar."""
    from tutelage.models.network import create_network
    from tutelage.models.weights import save_weights

    folder = tmp_path_factory.mktemp("weights")

    def make(name: str, num_classes: int = 10, **facts: Any) -> Path:
        torch.manual_seed(0)
        marks = "".join(f"-{key}" for key in facts)
        path = folder / f"{name}-{num_classes}{marks}.safetensors"
        save_weights(path, create_network(name, num_classes), facts)
        return path

    return make
