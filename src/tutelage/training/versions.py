"""The versions that a record names."""

from __future__ import annotations

import platform
from importlib.metadata import version

import tutelage

PACKAGES = ("torch", "torchvision", "timm")


def versions(*more: str) -> dict[str, str]:
    """Name -> version of what a result depends on: `PACKAGES`, this project, Python.

    Args:
        more: Further packages, which must be installed.
    """
    packages = {name: version(name) for name in (*PACKAGES, *more)}
    return packages | {"tutelage": tutelage.__version__, "python": platform.python_version()}
