"""First stages are found by content, checked when read, and trained again where anything is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from toys import saved_network
from tutelage.errors import TutelageError
from tutelage.files import cache_folder
from tutelage.recipes import resolve
from tutelage.training.build import assemble
from tutelage.training.stage_cache import (
    load_stage,
    phase_facts,
    save_stage,
    stage_facts,
    stage_key,
    stage_path,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def part(width: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


def facts(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(changes.pop("teacher_seed", 0))
    given: dict[str, Any] = {
        "method": "packd",
        "stage": "teacher head",
        "teacher": nn.Linear(2, 2),
        "architecture": ["resnet8_cifar", {}],
        "settings": {"embedding_dim": 3, "mixes": (1, 2)},
        "data": {"name": "cifar100", "few_ratio": 0.25},
        "training": {"seed": 0, "epochs": 60, "lr": 0.05},
    }
    return stage_facts(**{**given, **changes})


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_saved_part_comes_back_and_only_for_its_facts(folder: Path) -> None:
    assert not load_stage(facts(), part(seed=1))
    path = save_stage(facts(), part())
    assert path.parent.parent == folder and path.name.startswith("packd-")
    other = part(seed=1)
    assert load_stage(facts(), other) and same(other, part())
    changed = (
        {"teacher_seed": 1},
        {"settings": {"embedding_dim": 3, "mixes": (1, 3)}},
        {"data": {"name": "cifar100", "few_ratio": 0.5}},
        {"training": {"seed": 1, "epochs": 60, "lr": 0.05}},
        {"stage": "another"},
        {"architecture": ["resnet8_cifar", {"output_stride": 8}]},
    )
    for change in changed:
        assert not load_stage(facts(**change), part())
    assert len({stage_key(facts(**change)) for change in ({}, *changed)}) == 7


def test_the_key_does_not_depend_on_the_order_of_facts() -> None:
    given = facts()
    assert stage_key(given) == stage_key(dict(reversed(given.items())))
    with pytest.raises(ValueError, match="Out of range"):
        stage_key(facts(settings={"lr": float("nan")}))


def test_a_damaged_file_is_trained_again_and_replaced() -> None:
    path = save_stage(facts(), part())
    whole, noted = path.read_bytes(), path.with_suffix(".json").read_text()
    damaged = (
        (whole[: len(whole) // 2], noted),
        (whole[:-1] + bytes([whole[-1] ^ 1]), noted),
        (whole, "{"),
        (whole, noted.replace('"few_ratio": 0.25', '"few_ratio": 0.5')),
        (b"", noted),
    )
    for weights, sidecar in damaged:
        path.write_bytes(weights)
        path.with_suffix(".json").write_text(sidecar)
        untouched = part(seed=1)
        assert not load_stage(facts(), untouched) and same(untouched, part(seed=1))
    path.with_suffix(".json").unlink()
    assert not load_stage(facts(), part(seed=1))
    save_stage(facts(), part())
    assert load_stage(facts(), part(seed=1))


def test_a_part_that_is_not_finite_is_trained_again() -> None:
    spoilt = part()
    with torch.no_grad():
        next(spoilt.parameters())[0, 0] = float("nan")
    save_stage(facts(), spoilt)
    assert not load_stage(facts(), part(seed=1))


def test_images_and_the_teachers_arguments_are_facts(tmp_path: Path) -> None:
    teacher = saved_network(tmp_path, "resnet8_cifar")

    def of_run(**changes: Any) -> dict[str, Any]:
        settings = {
            "student.name": "resnet8_cifar",
            "teacher.name": "resnet8_cifar",
            "teacher.weights": str(teacher),
            "method.name": "packd",
            "data.name": "shapes",
            "data.few_ratio": 0.07,
            "runtime.threads": 1,
            **changes,
        }
        recipe = resolve(None, settings)
        parts = assemble(recipe)
        if changed_pixel:
            parts.data.splits["train"].images[3, 0, 0, 0] += 1
        phase = parts.method.phases()[0]
        return phase_facts(recipe, parts.nets, parts.method, parts.data, phase, None)

    changed_pixel = False
    first = of_run()
    assert stage_key(of_run()) == stage_key(first)
    assert stage_key(of_run(**{"teacher.args": {"in_chans": 3}})) != stage_key(first)
    changed_pixel = True
    assert stage_key(of_run()) != stage_key(first)


def test_a_part_of_another_shape_is_not_filled() -> None:
    save_stage(facts(), part())
    assert not load_stage(facts(), part(width=5))


def test_the_folder_is_the_users_unless_told(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert cache_folder() == folder and stage_path(facts()).is_relative_to(folder)
    monkeypatch.delenv("TUTELAGE_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "tutelage"


def test_a_cache_that_cannot_be_written_says_so(folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    with pytest.raises(TutelageError, match="can't write"):
        save_stage(facts(), part())
