"""Distillation methods, one file each; importing the package registers them."""

from tutelage.methods import at, dist, dkd, dpcd, fitnet, hsakd, kd, mutual, none, rkd, sp
from tutelage.methods.base import (
    MAIN_PHASE,
    Clock,
    Config,
    DataSpec,
    Method,
    Needs,
    Networks,
    Outs,
    Phase,
    teacher_of,
)
from tutelage.methods.registry import (
    create_method,
    explain,
    method_class,
    method_config,
    method_names,
    register_method,
)

__all__ = [
    "MAIN_PHASE",
    "Clock",
    "Config",
    "DataSpec",
    "Method",
    "Needs",
    "Networks",
    "Outs",
    "Phase",
    "at",
    "create_method",
    "dist",
    "dkd",
    "dpcd",
    "explain",
    "fitnet",
    "hsakd",
    "kd",
    "method_class",
    "method_config",
    "method_names",
    "mutual",
    "none",
    "register_method",
    "rkd",
    "sp",
    "teacher_of",
]
