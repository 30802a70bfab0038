"""How long networks take for a batch, measured side by side so that a busy moment meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from tutelage.models.probing import Size, image_shape
from tutelage.models.programs import Answer

BATCHES = (1, 64)
ROUNDS = 15
LEAST_ROUNDS = 3
SECONDS = 20.0
"""Rounds end when this much time is spent on one batch size, but not before `LEAST_ROUNDS`."""


def latencies(answers: Mapping[str, tuple[Answer, Size]]) -> dict[str, dict[str, float]]:
    """Median milliseconds of each answer for batches of random images.

    Args:
        answers: What to measure, by name, with the size of its images.

    Returns:
        By name, and in it by number of images (as text), for each of `BATCHES`.
    """
    result: dict[str, dict[str, float]] = {name: {} for name in answers}
    generator = torch.Generator().manual_seed(0)
    for count in BATCHES:
        calls = {
            name: _call(answer, torch.randn(count, *image_shape(size), generator=generator))
            for name, (answer, size) in answers.items()
        }
        for name, seconds in alternate(calls, ROUNDS, SECONDS).items():
            result[name][str(count)] = round(1e3 * seconds, 3)
    return result


def alternate(calls: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, float]:
    """Median seconds of each call, taken in turns after one call of each that doesn't count.

    Args:
        calls: What to measure, by name.
        rounds: How often, at most.
        seconds: Time after which no further round begins, once there are `LEAST_ROUNDS`.
    """
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def _call(answer: Answer, images: torch.Tensor) -> Callable[[], object]:
    return lambda: answer(images)
