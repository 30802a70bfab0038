"""The students' weights on disk: of the last epoch and of the best one, and their moving average's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.utils.model_ema import ModelEmaV3
from torch import nn

from tutelage.methods import Method, Networks
from tutelage.models.weights import joint_state, save_weights
from tutelage.recipes import ModelRecipe
from tutelage.training.distributed import is_writer
from tutelage.training.shown import own_wish

Best = dict[str, Any]
"""The best epoch so far of a phase: ``by`` (the split that chooses), ``phase``, ``epoch`` (of the phase),
``test``, ``val``, and ``ema``, that of the average where one is kept; empty before the first epoch."""


class Keeper:
    """Writes what an epoch has made of the students into the run's folder.

    Args:
        folder: Of the run.
        parts: The students' parts of the recipe.
        nets: With the students.
        method: Gives the plain network for inference.
        sidecar: Facts written beside all weights.
        selection: "backbone" or "joint", what the best epoch is chosen by.
    """

    def __init__(
        self,
        folder: Path,
        parts: Sequence[ModelRecipe],
        nets: Networks,
        method: Method,
        sidecar: dict[str, Any],
        selection: str,
    ) -> None:
        self.folder, self.parts, self.nets, self.method = folder, parts, nets, method
        self.sidecar, self.selection = sidecar, selection

    def keep(self, record: dict[str, Any], best: Best, averages: Sequence[ModelEmaV3]) -> Best:
        """Write the students after an epoch, and once more where it is the best so far.

        Args:
            record: Of the epoch.
            best: Before it.
            averages: The students' moving averages; empty where none are kept.

        Returns:
            ``best`` after it.
        """
        by = "val" if record["val"] else "test"
        if not best or self._merit(record[by]) > self._merit(best[by]):
            now = {key: record[key] for key in ("phase", "epoch", "test", "val")}
            best = {**best, "by": by, **now}
            self._save_students("_best", record)
        self._save_students("", record)
        return self._keep_average(averages[0].module, record, best) if averages else best

    def _merit(self, measured: dict[str, Any]) -> float:
        """What the best epoch is chosen by."""
        if self.selection == "joint":
            return float(max(measured["branches"]["joint_top1"]))
        return float(measured["top1"])

    def _save_students(self, suffix: str, record: dict[str, Any]) -> None:
        """Write each network's plain weights, and beside them those with branches where it has any."""
        if not is_writer():
            return
        tests = [record["test"], *record.get("peers", [])]
        for number, test in enumerate(tests):
            net, name = self.nets.students[number], f"peer{number}" if number else "student"
            own = {"epoch": record["epoch"], "val": record["val"], "test": test, "top1": test["top1"]}
            facts, plain = {**self._facts(number), **own}, self.method.export(net.model)
            save_weights(self.folder / f"{name}{suffix}.safetensors", plain, facts)
            if net.branches is not None:
                both = joint_state(plain.state_dict(), net.branches.state_dict())
                save_weights(self.folder / f"{name}{suffix}_aux.safetensors", both, facts)

    def _keep_average(self, average: nn.Module, record: dict[str, Any], best: Best) -> Best:
        """Write the first student's average, and once more where this epoch is its best by top-1."""
        own = {"epoch": record["epoch"], "test": record["ema_test"], "val": record.get("ema_val")}
        former, by, names = best.get("ema"), best["by"], ["student_ema"]
        if former is None or own[by]["top1"] > former[by]["top1"]:
            best = {**best, "ema": own}
            names.append("student_ema_best")
        if is_writer():
            facts = {**self._facts(0), **own, "top1": own["test"]["top1"]}
            for name in names:
                save_weights(self.folder / f"{name}.safetensors", self.method.export(average), facts)
        return best

    def _facts(self, number: int) -> dict[str, Any]:
        part, net = self.parts[number], self.nets.students[number]
        return {**self.sidecar, **own_wish(net.preprocess), "model": part.name, "args": part.args}
