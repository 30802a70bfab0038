"""Learning rates per epoch against those the research scripts use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parity.golden import arrays, cases, check
from tutelage.recipes import ScheduleRecipe
from tutelage.training.schedules import learning_rate

METHODS = {"learning-rate schedule"}
CASES = [case for case in cases("schedule") if case["method"] in METHODS]


def schedule_of(hyper: dict[str, Any]) -> tuple[float, ScheduleRecipe]:
    """Base rate and schedule from a case's hyper-parameters, whichever project's names they use."""
    if "sched" in hyper:
        return hyper["lr"], ScheduleRecipe(
            kind=hyper["sched"],
            epochs=hyper["epochs_argument"],
            min_lr=hyper["min_lr"],
            step_epochs=hyper["decay_epochs"],
            gamma=hyper["decay_rate"],
            warmup_epochs=hyper["warmup_epochs"],
            warmup_lr=hyper["warmup_lr"],
        )
    if "lr_decay_epochs" in hyper:
        return hyper["learning_rate"], ScheduleRecipe(
            kind="multistep",
            epochs=hyper["epochs"],
            milestones=hyper["lr_decay_epochs"],
            gamma=hyper["lr_decay_rate"],
        )
    if "t_lr" in hyper:
        return hyper["t_lr"], ScheduleRecipe(kind="constant", epochs=hyper["t_epoch"])
    return hyper["init_lr"], ScheduleRecipe(
        kind="cosine" if hyper.get("lr_type") == "SGDR" else "multistep",
        epochs=hyper["epochs"],
        milestones=hyper["milestones"],
        period=hyper.get("sgdr_t"),
        warmup_epochs=hyper["warmup_epoch"],
        warmup_by="iteration",
        warmup_prefix=True,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_learning_rates(case: dict[str, Any]) -> None:
    base, schedule = schedule_of(case["hyper"])
    steps = case["hyper"].get("iterations_per_epoch") or 1
    for name, expected in arrays(case).items():
        if name in {"out.lr_per_epoch", "out.lr_per_epoch_head"}:
            got = [learning_rate(schedule, base, epoch, steps - 1, steps) for epoch in range(len(expected))]
        elif name == "out.warmup_lr_per_iteration":
            got = [
                [learning_rate(schedule, base, e, s, steps) for s in range(steps)]
                for e in range(len(expected))
            ]
        elif name == "out.epoch":
            got = [epoch + 1 for epoch in range(len(expected))]
        elif name == "out.lr_per_epoch_backbone":
            got = [
                0.0 for _ in expected
            ]  # the backbone is frozen while the head trains: Phase(trains="method")
        else:
            pytest.fail(f"{case['id']}: array {name} is not known to this test")
        check(name, np.asarray(got), expected, case)
