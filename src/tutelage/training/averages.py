"""The moving average of the student's weights, written beside the student itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tutelage.models.weights import save_weights


def keep_average(
    folder: Path,
    average: nn.Module,
    record: dict[str, Any],
    best: dict[str, Any],
    facts: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write ``student_ema.safetensors``, and ``student_ema_best.safetensors`` where this epoch is its best.

    Args:
        folder: Of the run.
        average: The plain network for inference.
        record: Of the epoch, with ``ema_test`` and, where there are validation images, ``ema_val``.
        best: Of the run so far; ``by`` names what chooses, ``ema`` holds the average's best epoch.
        facts: To be written beside the weights; None writes nothing.

    Returns:
        ``best`` with ``ema``: epoch, test and val of the average's best epoch by top-1, and with both.
    """
    own = {"epoch": record["epoch"], "test": record["ema_test"], "val": record.get("ema_val")}
    former, by = best.get("ema"), best["by"]
    names = ["student_ema"]
    if former is None or own[by]["top1"] > former[by]["top1"]:
        best = {**best, "ema": own}
        names.append("student_ema_best")
    if facts is not None:
        known = {**facts, **own, "top1": own["test"]["top1"]}
        for name in names:
            save_weights(folder / f"{name}.safetensors", average, known)
    return best
