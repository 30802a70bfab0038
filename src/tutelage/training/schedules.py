"""Learning rate over time, as a pure function of position."""

from __future__ import annotations

import math

from tutelage.recipes.schema import ScheduleRecipe


def learning_rate(
    schedule: ScheduleRecipe, base: float, epoch: int, step: int, steps_per_epoch: int
) -> float:
    """The learning rate of one optimiser step.

    Args:
        schedule: Shape, milestones and warm-up.
        base: Base learning rate.
        epoch: 0-based epoch.
        step: 0-based step within the epoch.
        steps_per_epoch: Steps in a full epoch.

    Warm-up by epoch starts at ``warmup_lr`` and reaches ``base`` in epoch ``warmup_epochs`` (timm).
    Warm-up by iteration reaches ``base`` in the last step of the warm-up (HSAKD's ``train_*`` scripts).
    Milestones are 0-based: epoch 150 is the first decayed one for milestone 150; CRD and PACKD count epochs
    from 1 and decay after the milestone, which is the same epoch.
    """
    warmup = schedule.warmup_epochs
    if epoch < warmup:
        if schedule.warmup_by == "iteration":
            done = (1 + step + epoch * steps_per_epoch) / (warmup * steps_per_epoch)
        else:
            done = epoch / warmup
        return schedule.warmup_lr + done * (base - schedule.warmup_lr)
    position = epoch - warmup if schedule.warmup_prefix else epoch
    if schedule.kind == "multistep":
        return base * schedule.gamma ** sum(position >= milestone for milestone in schedule.milestones)
    if schedule.kind == "step":
        return base * schedule.gamma ** (position // schedule.step_epochs)
    if schedule.kind == "cosine":
        start, length = _cycle(position, schedule)
        return schedule.min_lr + (base - schedule.min_lr) / 2 * (
            1 + math.cos(math.pi * (position - start) / length)
        )
    return base


def warmup_warning(schedule: ScheduleRecipe) -> str | None:
    """A sentence when a run ends before its warm-up, as a short trial of a long recipe does; else None."""
    if not schedule.warmup_epochs or schedule.warmup_epochs < schedule.epochs:
        return None
    return (
        f"no epoch has the full learning rate, because the warm-up (schedule.warmup_epochs="
        f"{schedule.warmup_epochs}) lasts as long as the run (schedule.epochs={schedule.epochs}) or longer; "
        "shorten the one or lengthen the other"
    )


def _cycle(position: int, schedule: ScheduleRecipe) -> tuple[int, int]:
    """First epoch and length of the cosine cycle that ``position`` falls into."""
    if schedule.period is None:
        return 0, schedule.epochs - (schedule.warmup_epochs if schedule.warmup_prefix else 0)
    start, length = 0, schedule.period
    while position >= start + length:
        start, length = start + length, 2 * length
    return start, length
