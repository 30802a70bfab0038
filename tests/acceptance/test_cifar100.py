"""Whole trainings on CIFAR-100 against what the research code logged and published.

They take hours on a CPU, so they have a command of their own: ``make acceptance``, with the folder that holds
``cifar-100-python`` in ``TUTELAGE_CIFAR100``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import tutelage
from tutelage.runs.record import RunFolder
from tutelage.training.progress import Reporter

pytestmark = pytest.mark.hours

FAST = ("runtime.amp=bf16", "runtime.compile=on")
"""The research code computes in float32, eagerly."""


@pytest.fixture
def data_dir() -> str:
    """The folder with the images."""
    given = os.environ.get("TUTELAGE_CIFAR100")
    if not given:
        pytest.fail("name the folder that holds cifar-100-python in TUTELAGE_CIFAR100")
    return given


def test_an_epoch_of_mutual_learning(data_dir: str, tmp_path: Path) -> None:
    """HSAKD's repository logs cls 43.648, div 0.202 and 7.79, 8.39 % for two WRN-40-1 after one epoch."""
    tutelage.mutual(
        "hssakd/wrn_40_1",
        data_dir=data_dir,
        epochs=1,
        out=tmp_path / "run",
        settings=["optimiser.lr=0.01", "data.branch_evaluation=false", *FAST],
        reporter=Reporter(),
    )
    (epoch,) = RunFolder(tmp_path / "run").metrics()
    terms = epoch["train"]["terms"]
    assert terms["ce"] + terms["joint"] == pytest.approx(43.648, rel=0.01)
    assert epoch["train"]["loss"] - terms["ce"] - terms["joint"] == pytest.approx(0.202, abs=0.1)
    assert [epoch["test"]["top1"], epoch["peers"][0]["top1"]] == pytest.approx([7.79, 8.39], abs=1.5)


def test_wrn_16_2_alone(data_dir: str, tmp_path: Path) -> None:
    """HSAKD publishes 73.57 ± 0.23 % for 240 epochs; one run may be three such deviations away."""
    facts = tutelage.train(
        "hsakd/vanilla-wrn_16_2",
        data_dir=data_dir,
        out=tmp_path / "run",
        settings=FAST,
        reporter=Reporter(),
    )
    assert facts["summary"]["last"]["test"]["top1"] == pytest.approx(73.57, abs=0.7)
