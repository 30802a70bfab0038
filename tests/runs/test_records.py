"""Recorded runs against what the research code logged of the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.recipes import resolve

RESULTS = Path(__file__).parents[2] / "results"


def test_an_epoch_of_mutual_learning_is_close_to_the_published_log() -> None:
    """HSAKD's repository logs cls 43.648 and accuracies of 7.79 and 8.39 % for the first epoch."""
    folder = RESULTS / "cifar100-mutual-epoch"
    (epoch,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    terms = epoch["train"]["terms"]
    assert terms["ce"] + terms["joint"] == pytest.approx(43.648, rel=0.01)
    assert [epoch["test"]["top1"], epoch["peers"][0]["top1"]] == pytest.approx([7.79, 8.39], abs=1.5)


def test_that_epoch_ran_as_the_published_one() -> None:
    recipe = resolve(str(RESULTS / "cifar100-mutual-epoch" / "recipe.yaml"))
    (peer,) = recipe.peers
    assert (recipe.student.name, peer.name) == ("wrn_40_1_cifar", "wrn_40_1_cifar")
    assert (recipe.method["name"], recipe.optimiser.lr, recipe.data.batch_size) == ("hssakd", 0.01, 64)
    assert (recipe.seed, recipe.schedule.epochs, recipe.data.few_ratio) == (0, 1, 1.0)
