"""Kinds of settings that several methods have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator

from tutelage.methods.base import Config


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


Presets = Mapping[str, Mapping[str, str]]
"""Preset -> switch -> value."""


class SwitchConfig(Config):
    """Settings with switches: what isn't named is as the field ``preset`` has it.

    Attributes:
        presets: What each preset says of each switch.
    """

    presets: ClassVar[Presets]
    preset: str

    def switch(self, name: str) -> str:
        """The value of a switch: its own where it is named, else the preset's."""
        own: str | None = getattr(self, name)
        return self.presets[self.preset][name] if own is None else own
