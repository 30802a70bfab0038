"""A first stretch of training in front of the main one, as RepDistiller's ``helper/pretrain.py`` has it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tutelage.methods.base import MAIN_PHASE, Config, Phase


class FirstStageConfig(Config):
    """Settings of a method with a first stage."""

    first_epochs: int = Field(30, ge=1, description="Epochs of the first stage (init_epochs).")
    first_lr: float | None = Field(
        None, gt=0, description="Constant learning rate of the first stage; unset for the recipe's schedule."
    )


def first_and_main(
    config: FirstStageConfig, name: str, objective: str, trains: Literal["student", "method"] = "student"
) -> tuple[Phase, Phase]:
    """The first stage with an objective of its own, and the main one with `Method.forward`."""
    first = Phase(name, config.first_epochs, objective, trains=trains, lr=config.first_lr)
    return first, Phase(MAIN_PHASE)
