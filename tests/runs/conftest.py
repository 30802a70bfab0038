"""Run folders as training leaves them, without training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tutelage.runs import RunFolder

MakeRun = Callable[..., Path]

PROTOCOL = {"dataset": "digits", "few_ratio": 0.1, "train_images": 100, "test_images": 797, "epochs": 2}


def network(name: str, parameters: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": parameters,
        "macs": 12_400_000,
        "schema_hash": "ab12",
        "weights": None,
        "weights_hash": f"fresh-{name}",
        **more,
    }


def epoch(number: int, top1: float, **more: Any) -> dict[str, Any]:
    def part(loss: float) -> dict[str, Any]:
        return {"loss": loss, "top1": top1, "top5": 99.5}

    return {
        "phase": "distil",
        "epoch": number,
        "lr": 0.05 / (number + 1),
        "train": {**part(1.5), "terms": {"ce": 0.5, "kd": 1.0}},
        "val": None,
        "test": part(2.5),
        "seconds": 1.25,
        "images_per_second": 1234.5,
        **more,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that writes a finished run and returns its folder."""

    def make(
        name: str,
        *,
        seed: int = 0,
        method: str = "kd",
        top1: tuple[float, ...] = (40.0, 80.0),
        student: str = "resnet8_cifar",
        settings: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        protocol: dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
    ) -> Path:
        weights = f"/of/{name}/t.safetensors"
        teacher = None if method == "none" else {"name": "resnet20_cifar", "weights": weights}
        content = {
            "note": f"written for {name}",
            "seed": seed,
            "data": {"name": "digits", "dir": f"/of/{name}", "batch_size": 8},
            "student": {"name": student, "weights": None},
            "teacher": teacher,
            "method": {"name": method, **(settings or {})},
            "runtime": {"device": "cpu", "amp": "auto", "threads": seed + 1},
            **(recipe or {}),
        }
        metrics = [epoch(number, value) for number, value in enumerate(top1)]
        best = max(metrics, key=lambda line: line["test"]["top1"])
        run = RunFolder.create(
            tmp_path / name,
            yaml.safe_dump(content),
            {
                "status": "finished",
                "created": "2026-01-02T03:04:05+00:00",
                "task": "train" if teacher is None else "distill",
                "method": method,
                "seed": seed,
                "recipe_hash": "0123456789ab",
                "protocol": PROTOCOL | (protocol or {}),
                "normalisation": {"mean": [0.3, 0.3, 0.3], "std": [0.4, 0.4, 0.4]},
                "student": network(student, 78_042),
                "teacher": teacher
                and network("resnet20_cifar", 272_474, weights="t.safetensors", test={"top1": 98.875}),
                "hardware": {"device": "cpu (x86_64)", "threads": 2},
                "amp": "float32",
                "versions": {"torch": "2.11.0", "python": "3.11.2"},
                "compiled": False,
                "reason": None,
                "summary": {
                    "last": metrics[-1],
                    "best": {"by": "test", "epoch": best["epoch"], "test": best["test"], "val": None},
                    "training_seconds": 10.0 + seed,
                    "wall_seconds": 12.0,
                    "images_per_second": 1234.5,
                },
                **(facts or {}),
            },
        )
        for line in metrics:
            run.append(line)
        return run.path

    return make
