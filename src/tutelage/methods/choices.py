"""Kinds of settings that several methods have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, int) else value


def _once_each(stages: tuple[int, ...]) -> tuple[int, ...]:
    if min(stages, default=1) < 1:
        raise ValueError("Stages are counted from 1")
    if len(set(stages)) < len(stages):
        raise ValueError("Name a stage once")
    return stages


StageNumbers = Annotated[tuple[int, ...], BeforeValidator(_several), AfterValidator(_once_each)]
"""Stages counted from 1, each named once; a single number stands for itself alone."""
