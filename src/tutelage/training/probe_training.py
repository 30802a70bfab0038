"""The two ways to a linear classifier: epochs of SGD as the papers have them, or one fit by L-BFGS."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from tutelage.data import validation_split
from tutelage.errors import TutelageError, UserError
from tutelage.methods import MAIN_PHASE
from tutelage.training.probe_classifiers import Linear, SgdTrainer, fit, measure
from tutelage.training.probe_config import LbfgsRecipe, ProbeRecipe, SgdRecipe
from tutelage.training.probe_features import Backbone, Features
from tutelage.training.progress import Reporter
from tutelage.training.schedules import learning_rate


class Trained(NamedTuple):
    """What a protocol made.

    Attributes:
        classifier: The last epoch's.
        metrics: One record an epoch; one for a fit.
        choice: How the strength was chosen; None for SGD.
    """

    classifier: Linear
    metrics: list[dict[str, Any]]
    choice: dict[str, Any] | None = None


def train_sgd(
    backbone: Backbone, test: Features, first: Linear, recipe: ProbeRecipe, sgd: SgdRecipe, reporter: Reporter
) -> Trained:
    """Train by SGD, measuring on the test images after every epoch."""
    trainer = SgdTrainer(first, sgd)
    kept = None
    if backbone.enumerable and backbone.bytes("train") <= recipe.runtime.cache_gib * 2**30:
        kept = backbone.features("train")
    else:
        why = "random crops differ every time" if not backbone.enumerable else "they exceed runtime.cache_gib"
        reporter.say(f"training features are computed anew every epoch: {why}")
    metrics: list[dict[str, Any]] = []
    epochs = sgd.schedule.epochs
    reporter.start(epochs, 0)
    try:
        for epoch in range(epochs):
            began = time.perf_counter()
            rate = learning_rate(sgd.schedule, sgd.lr, epoch, 0, 1)
            pieces: Iterator[tuple[Tensor, Tensor]]
            if kept is None:
                pieces = backbone.epoch(epoch, sgd.batch_size)
            else:
                pieces = backbone.cached_epoch(kept, epoch, sgd.batch_size)
            shown = _train_epoch(trainer, pieces, sgd.batch_size, rate)
            loss, top1 = trainer.sums.loss.item() / shown, 100.0 * trainer.sums.hits.item() / shown
            if not math.isfinite(loss):
                raise TutelageError(
                    f"the loss is {loss} in epoch {epoch + 1}; try a lower rate, --set sgd.lr={sgd.lr / 10:g}"
                )
            seconds = time.perf_counter() - began
            record = {
                "phase": MAIN_PHASE,
                "epoch": epoch,
                "lr": rate,
                "train": {"loss": loss, "top1": top1},
                "test": measure(trainer.classifier, test.values[0], test.targets),
                "seconds": round(seconds, 3),
                "images_per_second": round(shown / seconds, 1),
            }
            metrics.append(record)
            reporter.step(epoch + 1, epoch, epochs, loss, top1, shown / seconds)
            reporter.epoch(record, epochs, (epochs - epoch - 1) * seconds)
    finally:
        reporter.stop()
    return Trained(trainer.classifier, metrics)


def _train_epoch(
    trainer: SgdTrainer, pieces: Iterable[tuple[Tensor, Tensor]], batch_size: int, rate: float
) -> int:
    """One epoch; returns how many images it had."""
    trainer.begin_epoch()
    shown = 0
    for features, targets in pieces:
        for rows, labels in zip(features.split(batch_size), targets.split(batch_size), strict=True):
            trainer.step(rows, labels, rate)
        shown += len(targets)
    return shown


def fit_lbfgs(
    backbone: Backbone,
    test: Features,
    classes: int,
    recipe: ProbeRecipe,
    lbfgs: LbfgsRecipe,
    reporter: Reporter,
) -> Trained:
    """Choose a strength on held-out training images, fit with it to all of them, and test once.

    Raises:
        UserError: The features can't be computed once, or too large a part of memory would go into them.
    """
    if not backbone.enumerable:
        raise UserError(
            "L-BFGS needs features that stay the same; set data.views to plain or flip, or choose a protocol "
            "that trains by SGD"
        )
    if backbone.bytes("train") > recipe.runtime.cache_gib * 2**30:
        raise UserError(
            f"the training features take {backbone.bytes('train') / 2**30:.1f} GiB, more than "
            f"runtime.cache_gib={recipe.runtime.cache_gib:g}; raise it, or take fewer images with --few-ratio"
        )
    began = time.perf_counter()
    train = backbone.features("train")
    chosen, tried = choose_strength(train, classes, lbfgs, reporter)
    reporter.say(f"fitting all training images with strength {chosen:.3g}")
    rows, targets = _rows(train)
    final = fit(rows.double(), targets, classes, chosen, lbfgs)
    classifier = Linear(*(part.float() for part in final.classifier))
    record = {
        "phase": MAIN_PHASE,
        "epoch": 0,
        "objective": final.objective,
        "steps": final.steps,
        "slope": final.slope,
        "train": measure(classifier, rows, targets),
        "test": measure(classifier, test.values[0], test.targets),
        "seconds": round(time.perf_counter() - began, 3),
    }
    choice = {"strength": chosen, "held_out": lbfgs.held_out, "tried": tried}
    return Trained(classifier, [record], choice)


def choose_strength(
    train: Features, classes: int, lbfgs: LbfgsRecipe, reporter: Reporter
) -> tuple[float, list[dict[str, Any]]]:
    """The strength with the best accuracy on held-out training images; of equals the strongest.

    Returns:
        The strength, and for each that was tried ``strength``, ``top1`` (percent) and ``steps``.
    """
    kept, held = (rows.to(train.rows.device) for rows in validation_split(train.targets, lbfgs.held_out))
    inner, targets = _rows(Features(train.values[:, kept], train.targets[kept], train.rows[kept]))
    inner, outer = inner.double(), train.values[0, held].double()
    low, high = math.log10(lbfgs.weakest), math.log10(lbfgs.strongest)
    results: dict[float, dict[str, Any]] = {}
    nearest_fit: dict[float, Linear] = {}

    def attempt(power: float) -> None:
        power = min(max(power, low), high)
        if power in results:
            return
        # Neighbouring minima lie close together, so the search starts at the nearest one that is known.
        close = min(nearest_fit, key=lambda other: abs(other - power), default=None)
        start = None if close is None else nearest_fit[close]
        made = fit(inner, targets, classes, 10.0**power, lbfgs, start)
        nearest_fit[power] = made.classifier
        top1 = measure(made.classifier, outer, train.targets[held])["top1"]
        results[power] = {"strength": 10.0**power, "top1": top1, "steps": made.steps}
        reporter.say(f"strength {10.0**power:.3g}: {top1:.2f}% of the held-out training images")

    def best() -> float:
        return max(results, key=lambda power: (results[power]["top1"], power))

    steps = max(math.ceil((high - low) / 2), 1)
    for number in range(steps, -1, -1):  # strong penalties first: their minima are found quickly
        attempt(low + (high - low) * number / steps)
    for distance in (1.0, 0.5, 0.25):
        centre = best()
        attempt(centre - distance)
        attempt(centre + distance)
    return 10.0 ** best(), [results[power] for power in sorted(results)]


def _rows(features: Features) -> tuple[Tensor, Tensor]:
    """Features of all views one below the other, `[V N, D]`, and their targets `[V N]`."""
    return features.values.flatten(0, 1), features.targets.repeat(len(features.values))


def summary(trained: Trained) -> dict[str, Any]:
    """The last epoch, which is the result; with several also the best one on the test images."""
    kept = ("epoch", "train", "test")
    last = {key: trained.metrics[-1][key] for key in kept}
    if trained.choice is not None:
        return {"last": last, "best": None}
    best = max(trained.metrics, key=lambda record: record["test"]["top1"])
    note = "best epoch on the test images, as the papers report it"
    return {"last": last, "best": {"note": note, **{key: best[key] for key in kept}}}
