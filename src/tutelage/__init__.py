"""Tutelage distils vision classifiers: a strong teacher, a small student, one method, one command.

Every command is also a function here:

    import tutelage

    result = tutelage.distill(
        teacher="resnet56_cifar",
        teacher_weights="r56.safetensors",
        student="resnet20_cifar",
        method="kd",
        data="cifar100",
        data_dir="data",
        epochs=240,
    )
    print(result["summary"]["last"]["test"]["top1"])

The functions are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.data.preparation import prepare_data
    from tutelage.methods import create_method
    from tutelage.models.weights import import_weights, inspect_weights
    from tutelage.training.demo import demo
    from tutelage.training.describe import describe, list_datasets, list_methods, list_models, list_recipes
    from tutelage.training.distiller import distiller
    from tutelage.training.doctor import doctor
    from tutelage.training.export import export
    from tutelage.training.jobs import distill, evaluate, mutual, resume, train
    from tutelage.training.probe import probe

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "create_method",
    "demo",
    "describe",
    "distill",
    "distiller",
    "doctor",
    "evaluate",
    "export",
    "import_weights",
    "inspect_weights",
    "list_datasets",
    "list_methods",
    "list_models",
    "list_recipes",
    "mutual",
    "prepare_data",
    "probe",
    "resume",
    "train",
]

_HOMES = {
    "create_method": "tutelage.methods",
    "demo": "tutelage.training.demo",
    "describe": "tutelage.training.describe",
    "distill": "tutelage.training.jobs",
    "distiller": "tutelage.training.distiller",
    "doctor": "tutelage.training.doctor",
    "evaluate": "tutelage.training.jobs",
    "export": "tutelage.training.export",
    "import_weights": "tutelage.models.weights",
    "inspect_weights": "tutelage.models.weights",
    "list_datasets": "tutelage.training.describe",
    "list_methods": "tutelage.training.describe",
    "list_models": "tutelage.training.describe",
    "list_recipes": "tutelage.training.describe",
    "mutual": "tutelage.training.jobs",
    "prepare_data": "tutelage.data.preparation",
    "probe": "tutelage.training.probe",
    "resume": "tutelage.training.jobs",
    "train": "tutelage.training.jobs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tutelage' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
