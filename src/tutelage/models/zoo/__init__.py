"""The CIFAR networks of the distillation literature; importing this makes timm know them."""

from tutelage.models.zoo import mobilenets, resnets, shufflenets, vggs, wide_resnets
from tutelage.models.zoo.base import CifarNet, Layout

__all__ = ["CifarNet", "Layout", "mobilenets", "resnets", "shufflenets", "vggs", "wide_resnets"]
