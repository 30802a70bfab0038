"""Networks of the distillation literature that timm lacks; importing this makes timm know them.

Names that end in ``_cifar`` are for images of 32 x 32 pixels; the others are for 224 x 224.
"""

from tutelage.models.zoo import (
    cycle_mlps,
    hire_mlps,
    mobilenets,
    permutators,
    resnets,
    shufflenets,
    swins,
    vggs,
    wide_resnets,
)
from tutelage.models.zoo.base import CifarNet, Layout
from tutelage.models.zoo.registration import own_names

__all__ = [
    "CifarNet",
    "Layout",
    "cycle_mlps",
    "hire_mlps",
    "mobilenets",
    "own_names",
    "permutators",
    "resnets",
    "shufflenets",
    "swins",
    "vggs",
    "wide_resnets",
]
