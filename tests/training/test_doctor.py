"""The doctor: what is tapped and added, with the published numbers, also before there are weights or data."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tutelage
from tutelage.errors import UserError
from tutelage.models.network import create_network
from tutelage.models.weights import save_weights
from tutelage.recipes import validate
from tutelage.training import measuring
from tutelage.training.build import assemble
from tutelage.training.hardware import pick_device
from tutelage.training.measuring import bearable_batch, saved_bytes
from tutelage.training.measuring import probing_batch as probing
from tutelage.training.stand_in import data_or_stand_in
from tutelage.training.step import Step

ONE_THREAD = "runtime.threads=1"
SMALL = ("data.few_ratio=0.08", "data.batch_size=16", "schedule.epochs=2", ONE_THREAD)


def look(method: str, student: str = "resnet8_cifar", **more: Any) -> dict[str, Any]:
    """Two ResNets of CIFAR, the teacher without weights."""
    settings = [*SMALL, *more.pop("settings", ())]
    return tutelage.doctor(
        student=student,
        teacher="resnet14_cifar",
        method=method,
        data="shapes",
        settings=settings,
        **{"measure": False, **more},
    )


def sums(parts: list[dict[str, Any]]) -> dict[str, int]:
    """Parameters by the first level of the name."""
    found: dict[str, int] = {}
    for part in parts:
        group = part["name"].partition(".")[0]
        found[group] = found.get(group, 0) + part["parameters"]
    return found


def hard_pair(method: str, teacher: str, student: str, folder: Path) -> dict[str, Any]:
    """CIFAR-100 at 224 without its files."""
    return tutelage.doctor(
        teacher=teacher,
        student=student,
        method=method,
        data="cifar100",
        data_dir=folder,
        settings=["data.image_size=224", "data.batch_size=2", ONE_THREAD],
        measure=False,
    )


def test_a_vit_at_224_and_a_mobilenet_with_neither_weights_nor_data(tmp_path: Path) -> None:
    """Figures of the specification for PAT: totals, and the shapes that features have."""
    found = hard_pair("pat", "vit_small_patch16_224", "mobilenetv2_100", tmp_path)
    assert sums(found["parts"]) == {
        "prompt_blocks": 18_191_044,
        "attention_blending": 7_410_176,
        "aligners": 804_496,
    }
    assert found["cost"]["parts_parameters"] == found["method"]["trainable_parameters"] == 26_405_716
    taps = {role: network["taps"]["stages"] for role, network in found["networks"].items()}
    shapes = {role: [stage["shape"] for stage in stages] for role, stages in taps.items()}
    assert shapes["student"] == [[24, 56, 56], [32, 28, 28], [96, 14, 14], [1280, 7, 7]]
    assert shapes["teacher"] == [[384, 14, 14]] * 4
    assert [stage["input"] for stage in taps["teacher"]] == [[197, 384]] * 4
    assert [stage["entrance"] for stage in taps["teacher"]] == [f"blocks.{n}" for n in (0, 2, 4, 10)]
    parts = {part["name"]: part for part in found["parts"]}
    assert parts["aligners.0"]["inputs"] == [[16, 512]] and parts["aligners.0"]["outputs"] == [[196, 384]]
    assert parts["attention_blending"]["inputs"] == shapes["student"]
    # One prompt: the convolutions on 14 x 14 positions, SE's on one.
    width, hidden = 384, 24
    fusion = 2 * width**2 + 25 * width**2 + width**2 + width**2
    prompt = width**2 // 4 + 25 * width + width**2 + width**2 // 4
    assert parts["prompt_blocks.0"]["macs"] == (fusion + prompt) * 196 + 4 * width * hidden
    assert (found["cost"]["teacher_passes"], found["cost"]["teacher_backward"]) == (2, True)
    assert found["networks"]["student"]["parameters"] == 2_351_972
    missing, random = found["warnings"]
    assert "no cifar100 found" in missing and "noise stands in" in missing
    assert "random weights: accuracy not checked" in random
    assert found["data"] == {
        "name": "cifar100",
        "there": False,
        "classes": 100,
        "image_size": [224, 224],
        "train_images": 50_000,
        "test_images": 10_000,
    }
    assert found["terms"] is None and found["estimate"] is None


def test_the_estimate_counts_every_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """PACKD's head, the epochs that fill its memory, and distillation."""
    seen = []

    def taken(step: Step, batch: Any, clock: Any, update: bool = True) -> float:
        seen.append((step.objective, len(step.students), update))
        return {0: 1.0, 1: 100.0}[len(step.students)] if update else 10.0

    monkeypatch.setattr(measuring, "_step_seconds", taken)
    settings = ("method.head_epochs=7", "method.fill_epochs=3", "method.negatives=8")
    found = look("packd", measure=True, settings=settings)["estimate"]
    assert seen == [("classify", 0, True), ("forward", 1, False), ("forward", 1, True)]
    more = 16 / found["probe_batch"]
    steps = found["steps_per_epoch"] * more
    assert found["training_hours"] == pytest.approx((7 * 1 + 3 * 10 + 2 * 100) * steps / 3600, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "teacher", "student", "total"),
    [
        ("ofa", "swin_tiny_patch4_window7_224", "resnet18", 1_626_256),
        ("ofa", "swin_tiny_patch4_window7_224", "mobilenetv2_100", 2_529_296),
        ("ofa", "convnext_tiny", "deit_tiny_patch16_224", 3_783_184),
        ("pat", "convnext_tiny", "deit_tiny_patch16_224", 14_475_236),
        ("pat", "swin_tiny_patch4_window7_224", "resnet18", 38_521_997),
        ("pat", "mixer_b16_224", "resmlp_12_224", 72_656_260 + 13_373_952 + 1_595_536),
    ],
)
def test_the_published_pairs(method: str, teacher: str, student: str, total: int, tmp_path: Path) -> None:
    found = hard_pair(method, teacher, student, tmp_path)
    assert found["cost"]["parts_parameters"] == total
    assert sum(part["parameters"] for part in found["parts"]) == total


@pytest.mark.parametrize(
    ("method", "student"),
    [("fitnet", "resnet8_cifar"), ("packd", "resnet14_cifar"), ("crd", "resnet8_cifar")],
)
def test_the_parts_are_all_that_a_method_trains_and_remembers(method: str, student: str) -> None:
    found = look(method, student)
    for total, key in (("trainable_parameters", "parameters"), ("state_values", "state")):
        assert sum(part[key] for part in found["parts"]) == found["method"][total]
    assert found["method"]["trainable_parameters"] > 0
    assert all(part["inputs"] and part["outputs"] for part in found["parts"] if part["parameters"])


def test_branches_of_the_student_are_parts_too() -> None:
    found = look("hsakd")
    branches = [part for part in found["parts"] if part["name"].startswith("student.branches.")]
    assert branches and all(part["parameters"] for part in branches)
    assert found["networks"]["student"]["taps"]["branches"] == [40, 40, 40]
    assert found["method"]["trainable_parameters"] == 0


def test_a_projector_is_described_by_what_goes_through_it() -> None:
    found = look("fitnet")
    (part,) = found["parts"]
    student, teacher = (
        [stage["shape"] for stage in found["networks"][role]["taps"]["stages"]]
        for role in ("student", "teacher")
    )
    stage = student.index(part["inputs"][0])
    assert part["outputs"][0] == teacher[stage]
    assert found["cost"]["parts_macs"] == part["macs"] > 0


def test_a_method_on_logits_taps_nothing() -> None:
    found = look("kd")
    taps = found["networks"]["student"]["taps"]
    assert not taps["tapped"] and len(taps["stages"]) == 3 and "shape" not in taps["stages"][0]
    assert taps["pooled"] is None and found["parts"] == []
    assert found["cost"]["teacher_passes"] == 1 and found["data"]["there"]


def test_looking_changes_nothing_that_is_learnt() -> None:
    from tutelage.training.anatomy import describe_parts

    values = {
        "data": {"name": "shapes", "few_ratio": 0.08},
        "student": {"name": "resnet8_cifar"},
        "teacher": {"name": "resnet14_cifar"},
        "method": {"name": "fitnet"},
    }
    recipe = validate(values)
    parts = assemble(recipe, weightless=True)
    before = {
        **{key: value.clone() for key, value in parts.nets.student.state_dict().items()},
        **{key: value.clone() for key, value in parts.method.state_dict().items()},
    }
    describe_parts(parts.nets, parts.method, *probing(parts, recipe, 2))
    after = {**parts.nets.student.state_dict(), **parts.method.state_dict()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert parts.nets.student.training and not any(p._forward_hooks for p in parts.method.modules())


def test_a_run_still_needs_the_weights() -> None:
    with pytest.raises(UserError, match="has no weights, so there is nothing to learn from it"):
        tutelage.distill(student="resnet8_cifar", teacher="resnet14_cifar", method="kd", data="shapes")


def test_measuring_on_a_smaller_batch_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=map(float, count()).__next__)  # a second between any two looks
    monkeypatch.setattr("tutelage.training.measuring.time", clock)
    found = look("kd", measure=True, probe_batch=4)
    estimate = found["estimate"]
    assert estimate["probe_batch"] == 4 and "batches of 4 and scaled to 16" in estimate["note"]
    assert estimate["steps_per_epoch"] == 5
    assert set(found["terms"]) == {"ce", "kd"} and "test" not in found["networks"]["teacher"]
    assert (estimate["step_seconds"], estimate["images_per_second"]) == (4.0, 4.0)
    assert estimate["training_hours"] == pytest.approx(4.0 * 5 * 2 / 3600, abs=1e-3)
    whole = look("kd", measure=True, probe_batch=16)["estimate"]
    assert "scaled" not in whole["note"] and whole["step_seconds"] == 1.0
    assert whole["activations_mib"] == pytest.approx(estimate["activations_mib"], rel=0.05)


def test_answers_that_are_looked_up_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=map(float, count()).__next__)  # step and teacher take a second each
    monkeypatch.setattr("tutelage.training.measuring.time", clock)
    one_view = ("data.augment=false", "schedule.epochs=4")
    found = look("kd", measure=True, probe_batch=16, settings=one_view)
    table = found["cost"]["answers"]
    assert (table["kept"], table["known"], table["filled"]) == ("memory", 0.75, 1)
    assert table["bytes"] == found["data"]["train_images"] * 10 * 4
    assert found["estimate"]["training_hours"] == pytest.approx((1 - 0.75) * 5 * 4 / 3600, abs=1e-3)
    assert "75% of the teacher's answers looked up" in found["estimate"]["note"]
    asking = look("kd", measure=True, probe_batch=16, settings=(*one_view, "runtime.teacher_answers=off"))
    assert asking["cost"]["answers"] is None and "looked up" not in asking["estimate"]["note"]
    assert asking["estimate"]["training_hours"] == pytest.approx(5 * 4 / 3600, abs=1e-3)


def parts_of(method: str, teacher: str = "resnet14_cifar", **data: Any) -> tuple[Any, Any]:
    values = {
        "data": {"name": "shapes", "few_ratio": 0.08, **data},
        "student": {"name": "resnet8_cifar"},
        "teacher": {"name": teacher},
        "method": {"name": method},
    }
    recipe = validate(values)
    return recipe, assemble(recipe, weightless=True)


def test_activations_are_what_the_graph_keeps() -> None:
    recipe, parts = parts_of("kd")
    step = Step(parts.nets, parts.method)
    sizes = [saved_bytes(parts.nets, step, *probing(parts, recipe, number)) for number in (2, 4)]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.02)
    # More than the outputs of the student's convolutions, of which a ReLU behind each is kept.
    widths = {16: 32, 32: 16, 64: 8}
    least = 4 * 2 * sum(2 * width * side**2 for width, side in widths.items())
    assert sizes[0] > least
    held = sum(p.numel() for p in step.parameters()) * 4
    assert sizes[0] < 40 * least and held > 0


def test_a_cpu_is_asked_for_what_it_can_bear() -> None:
    recipe, parts = parts_of("kd", batch_size=64)
    assert bearable_batch(recipe, parts, {"student": 10**6, "teacher": 10**6}) == 64
    assert bearable_batch(recipe, parts, {"student": 10**8, "teacher": 4 * 10**9}) == 4
    assert bearable_batch(recipe, parts, {"student": 10**12, "teacher": 10**12}) == 2


def test_noise_stands_in_with_as_many_labels_as_the_data_have(tmp_path: Path) -> None:
    values = {
        "data": {
            "name": "cifar100",
            "dir": str(tmp_path),
            "few_ratio": 0.5,
            "val_fraction": 0.1,
            "augment": False,
        },
        "student": {"name": "resnet8_cifar"},
    }
    data, why = data_or_stand_in(validate(values), pick_device("cpu"))
    assert why is not None and "no cifar100 found" in why
    assert data.train_size == 22_500 and data.size("test") == 10_000
    assert torch.equal(torch.bincount(data.train_labels), torch.full((100,), 225))
    batch = next(iter(data.train_batches(0, 0, 8)))
    assert batch.images.shape == (8, 3, 32, 32) and batch.index.max() > 100
    assert torch.equal(batch.targets, data.train_labels[batch.index])
    assert len(batch.images.flatten(1).unique(dim=0)) > 4


def test_data_of_which_nothing_is_known_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*train"):
        tutelage.doctor(model="resnet8_cifar", data="folder", data_dir=tmp_path / "none", measure=False)


def test_settings_that_are_wrong_are_refused_without_data(tmp_path: Path) -> None:
    settings = ["data.augment=rand-nonsense", "data.image_size=64"]
    with pytest.raises(UserError, match="rand-nonsense"):
        tutelage.doctor(
            model="resnet8_cifar", data="cifar100", data_dir=tmp_path, settings=settings, measure=False
        )


def test_a_teacher_with_weights_is_still_evaluated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "teacher.safetensors"
    save_weights(weights, create_network("resnet14_cifar", 10), {"top1": 90.0})
    found = look("kd", teacher_weights=weights, measure=True, probe_batch=2)
    assert found["networks"]["teacher"]["test"]["images"] == found["data"]["test_images"]
    assert any("noted with 90.00%" in warning for warning in found["warnings"])
    assert not any("random" in warning for warning in found["warnings"])
