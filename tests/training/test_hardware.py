"""The device of a run: what has to be exact computes in float32, and nobody else's settings change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from toys import toy_batch, toy_clock, toy_data, toy_step
from tutelage.methods import create_method
from tutelage.training import evaluate as evaluate_module
from tutelage.training import step as step_module
from tutelage.training.evaluate import evaluate
from tutelage.training.hardware import exact_float32
from tutelage.training.step import compiled_or_eager

CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


def settings() -> tuple[Any, ...]:
    flags = (CUDNN.enabled, CUDNN.benchmark, CUDNN.deterministic, CUDNN.allow_tf32)
    return (*flags, torch.get_float32_matmul_precision())


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Settings as a user may have them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    monkeypatch.setattr(CUDNN, "benchmark", True)
    yield request.param
    torch.set_float32_matmul_precision(before)


def tf32_allowed() -> bool:
    """Whether convolutions or matrix products may round, by whichever names this PyTorch has."""
    if hasattr(CUDNN, "conv"):
        return "tf32" in (CUDNN.conv.fp32_precision, MATMUL.fp32_precision)
    return bool(CUDNN.allow_tf32 or MATMUL.allow_tf32)


def test_exact_float32_forbids_tf32_and_puts_everything_back(precision: str) -> None:
    before = settings()
    assert CUDNN.allow_tf32, "PyTorch's default, which the block is for"
    with exact_float32(torch.device("cuda")):
        assert not tf32_allowed() and CUDNN.benchmark and CUDNN.enabled
    assert settings() == before
    with pytest.raises(KeyError), exact_float32(torch.device("cuda")):
        raise KeyError
    assert settings() == before


@pytest.mark.skipif(not hasattr(CUDNN, "conv"), reason="PyTorch has no newer names")
def test_the_newer_names_of_the_settings_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUDNN.rnn, "fp32_precision", "ieee")
    with pytest.raises(RuntimeError):
        settings()  # PyTorch doesn't tell the older ones any more
    before = CUDNN.conv.fp32_precision, MATMUL.fp32_precision
    assert tf32_allowed()
    with exact_float32(torch.device("cuda")):
        assert not tf32_allowed()
        nn.Conv2d(1, 1, 1)(torch.ones(1, 1, 2, 2))
    assert (CUDNN.conv.fp32_precision, MATMUL.fp32_precision) == before


def test_on_a_cpu_nothing_changes() -> None:
    before = settings()
    with exact_float32(torch.device("cpu")):
        assert settings() == before
    assert settings() == before


def test_evaluation_and_the_exact_gradients_are_computed_so(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = [False]

    @contextmanager
    def noted(device: torch.device) -> Iterator[None]:
        inside[0] = True
        yield
        inside[0] = False

    for module in (evaluate_module, step_module):
        monkeypatch.setattr(module, "exact_float32", noted)
    data, seen = toy_data(), []

    class Model(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(inside[0])
            return torch.zeros(len(images), 10)

    evaluate(Model(), data.eval_batches("test", 8))
    assert seen and all(seen)
    step, _ = toy_step(create_method("kd"), data)
    step.amp, passes, whole = torch.bfloat16, [], step_module._gradients

    def gradients(*arguments: Any) -> Any:
        passes.append((inside[0], step.amp))
        return whole(*arguments)

    monkeypatch.setattr(step_module, "_gradients", gradients)
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    compiled_or_eager(step, toy_batch(data), toy_clock())
    assert passes == [(True, None), (False, torch.bfloat16), (False, torch.bfloat16)]
