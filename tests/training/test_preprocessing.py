"""Each network's own image size: in front of it, in its shapes, in its record, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tutelage
from tutelage.errors import UserError
from tutelage.methods import Clock
from tutelage.models.fingerprint import multiply_adds
from tutelage.models.folding import folded
from tutelage.models.network import Network, create_network, probe
from tutelage.models.weights import read_sidecar, save_weights
from tutelage.recipes import validate
from tutelage.training.build import Parts, assemble
from tutelage.training.preprocessing import Resize, behind, preprocessing
from tutelage.training.step import Step, relative_difference

CIFAR = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
OTHER = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 64, "patch_size": 16}
SWIFT = (
    "data.few_ratio=0.04",
    "data.batch_size=20",
    "schedule.epochs=1",
    "runtime.tensorboard=false",
    "runtime.threads=1",
)


def naive_weights(count: int, wanted: int) -> Tensor:
    """Keys' cubic filter (a = -0.5), stretched where there are fewer pixels than before: [wanted, count]."""
    scale = count / wanted
    stretch = max(scale, 1.0)
    rows = []
    for place in range(wanted):
        centre = (place + 0.5) * scale
        first, last = int(max(centre - 2 * stretch + 0.5, 0)), int(min(centre + 2 * stretch + 0.5, count))
        row = torch.zeros(count, dtype=torch.float64)
        for pixel in range(first, last):
            x = abs((pixel + 0.5 - centre) / stretch)
            near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            row[pixel] = near if x < 1 else far if x < 2 else 0.0
        rows.append(row / row.sum())
    return torch.stack(rows)


@pytest.mark.parametrize("sides", [(9, 9), (16, 16), (5, 13), (7, 7)])
def test_resizing_is_the_filter_it_says(sides: tuple[int, int]) -> None:
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    down, across = (naive_weights(12, side) for side in sides)
    expected = torch.einsum("hi,bcij,wj->bchw", down, images.double(), across)
    torch.testing.assert_close(Resize(sides)(images).double(), expected, atol=2e-6, rtol=0)


def test_nothing_stands_in_front_of_a_network_that_takes_the_images_as_they_are() -> None:
    assert preprocessing(CIFAR, CIFAR, (32, 32), (32, 32)) is None
    assert preprocessing(CIFAR, None, (32, 32), (32, 32)) is None


def test_size_and_normalisation_come_together() -> None:
    pixels = torch.rand(2, 3, 8, 8)

    def normalised(images: Tensor, pair: Any) -> Tensor:
        mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in pair)
        return (images - mean) / std

    front = preprocessing(CIFAR, OTHER, (8, 8), (12, 12))
    assert front is not None
    expected = normalised(Resize((12, 12))(pixels), OTHER)
    torch.testing.assert_close(front(normalised(pixels, CIFAR)), expected, atol=1e-5, rtol=1e-5)
    assert behind(None, front) is front
    assert torch.equal(behind(front, torch.nn.Identity())(pixels), front(pixels))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 64 x 64 pixels."""
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    torch.manual_seed(0)
    save_weights(path, create_network("vit_tiny_patch16_224", 10, **VIT), {"image_size": [64, 64]})
    return path


def pair(vit: Path, method: str = "kd", **settings: Any) -> Parts:
    """A ViT at 64 and a ResNet-8 at the 32 pixels of the data."""
    return assemble(
        validate(
            {
                "task": "distill",
                "data": {"name": "shapes", "few_ratio": 0.04},
                "student": {"name": "resnet8_cifar"},
                "teacher": {"name": "vit_tiny_patch16_224", "weights": str(vit), "args": VIT},
                "method": {"name": method, **settings},
            }
        )
    )


def batch_of(parts: Parts, size: int = 6) -> tuple[Any, Clock]:
    clock = Clock(torch.tensor(1.0), torch.tensor(1.0))
    batch = next(iter(parts.data.train_batches(0, 0, size)))
    return parts.method.views(batch, torch.Generator().manual_seed(0)), clock


def test_a_teacher_gets_the_size_noted_beside_its_weights_and_the_student_the_datas(vit: Path) -> None:
    parts = pair(vit)
    teacher = parts.nets.teacher
    assert teacher is not None
    assert teacher.received(32) == (3, 64, 64)
    assert parts.nets.student.received(32) == (3, 32, 32)
    batch, _ = batch_of(parts)
    expected = teacher.model(Resize((64, 64))(batch.images))
    assert torch.equal(teacher(batch.images).logits, expected)


def test_a_step_across_sizes_trains_compiled_as_eager(vit: Path) -> None:
    values = {
        "task": "distill",
        "data": {"name": "shapes", "few_ratio": 0.04},
        "student": {"name": "test_resnet"},
        "teacher": {"name": "vit_tiny_patch16_224", "weights": str(vit), "args": VIT},
        "method": {"name": "pat", "dim": 16, "heads": 2},
    }
    parts = assemble(validate(values))
    batch, clock = batch_of(parts)
    step = Step(parts.nets.folded(32), parts.method)

    def gradients(call: Any) -> dict[str, Tensor]:
        step.zero_grad(set_to_none=True)
        call(batch, clock).loss.backward()
        parts.method.discard()
        return {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}

    eager = gradients(step)
    compiled = gradients(torch.compile(step, backend="aot_eager", fullgraph=True))
    assert relative_difference(compiled, eager) < 1e-4
    assert any(name.startswith("students.") and grad.abs().sum() > 0 for name, grad in eager.items())


def test_shapes_are_those_at_the_networks_own_size(vit: Path) -> None:
    parts = pair(vit, "ofa")
    teacher = parts.nets.teacher
    assert teacher is not None
    shapes = probe(Network(teacher.model), 64)
    assert probe(teacher, (3, 32, 32)).logits == shapes.logits
    with pytest.raises(UserError, match="can't take images of 32x32"):
        probe(Network(teacher.model), 32)


def test_a_folded_teacher_still_resizes() -> None:
    torch.manual_seed(0)
    network = Network(create_network("resnet8_cifar", 10), role="frozen")
    network.preprocess = Resize((16, 16))
    images = torch.randn(2, 3, 32, 32)
    quick = folded(network, 32)
    assert quick is not network
    torch.testing.assert_close(quick(images).logits, network(images).logits, rtol=1e-4, atol=1e-5)


def test_the_recipes_size_wins_and_a_trained_network_ignores_the_noted_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_weights(path, create_network("resnet8_cifar", 10), {"image_size": [24, 24]})
    part = {"name": "resnet8_cifar", "weights": str(path)}

    def sizes(teacher: dict[str, Any], student: dict[str, Any]) -> list[tuple[int, ...]]:
        values = {
            "data": {"name": "shapes"},
            "method": {"name": "kd"},
            "teacher": teacher,
            "student": student,
        }
        nets = assemble(validate(values)).nets
        assert nets.teacher is not None
        return [net.received(32)[-2:] for net in (nets.teacher, nets.student)]

    assert sizes(part, part) == [(24, 24), (32, 32)]
    assert sizes({**part, "image_size": 40}, {**part, "image_size": 16}) == [(40, 40), (16, 16)]


def test_a_size_that_the_network_refuses_is_named(vit: Path) -> None:
    teacher = {"name": "vit_tiny_patch16_224", "weights": str(vit), "args": VIT, "image_size": 48}
    values = {"data": {"name": "shapes"}, "method": {"name": "kd"}, "teacher": teacher}
    with pytest.raises(UserError, match=r"can't take images of 48x48.*image_size of the data"):
        assemble(validate({**values, "student": {"name": "resnet8_cifar"}}))


def test_a_run_keeps_its_sizes_in_the_record_and_evaluation_uses_them(tmp_path: Path, vit: Path) -> None:
    settings = [
        *SWIFT,
        "student.image_size=24",
        f"teacher.args={json.dumps(VIT)}",
    ]
    run = tutelage.distill(
        student="resnet8_cifar",
        teacher="vit_tiny_patch16_224",
        teacher_weights=vit,
        data="shapes",
        out=tmp_path / "run",
        settings=settings,
    )
    assert (run["teacher"]["image_size"], run["student"]["image_size"]) == ([64, 64], [24, 24])
    student = create_network("resnet8_cifar", 10)
    assert run["student"]["macs"] == multiply_adds(student, 24)
    weights = tmp_path / "run" / "student.safetensors"
    assert read_sidecar(weights)["image_size"] == [24, 24]
    again = tutelage.evaluate("resnet8_cifar", weights=weights, data="shapes")
    assert again["image_size"] == [24, 24] and again["warning"] is None
    last = run["summary"]["last"]
    assert again["top1"] == pytest.approx(last["test"]["top1"])
    assert again["loss"] == pytest.approx(last["test"]["loss"], rel=1e-3)
    full = tutelage.evaluate(
        "resnet8_cifar", weights=weights, data="shapes", settings=["student.image_size=32"]
    )
    assert full["image_size"] == [32, 32] and abs(full["loss"] - again["loss"]) > 1e-4


def test_the_average_of_the_weights_is_evaluated_at_the_networks_size(tmp_path: Path) -> None:
    # With a decay of 0 the average is the student itself.
    settings = [*SWIFT, "student.image_size=24", "runtime.ema_decay=0.000001"]
    run = tutelage.train(model="resnet8_cifar", data="shapes", out=tmp_path / "run", settings=settings)
    last = run["summary"]["last"]
    assert last["ema_test"]["loss"] == pytest.approx(last["test"]["loss"], rel=2e-5)
