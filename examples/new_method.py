"""A new method in one file: nothing in the package is touched.

The student's logits are to keep the order of the teacher's: wherever the teacher prefers class a to class
b, the student is asked to do so by a margin. Importing this file makes the method known; `main` then trains
with it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import Tensor

import tutelage
from tutelage.data.batch import Batch
from tutelage.methods import Clock, Config, Method, Outs, register_method, teacher_of


def order_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """mean over pairs of classes of max(0, margin - (s_a - s_b) sign(t_a - t_b)).

    Args:
        student: Logits `[B, C]`.
        teacher: Logits `[B, C]`.
        margin: What a right order has to reach, in logits.
    """
    preferred = (teacher.unsqueeze(2) - teacher.unsqueeze(1)).sign()
    reached = (student.unsqueeze(2) - student.unsqueeze(1)) * preferred
    return ((margin - reached).clamp(min=0) * preferred.abs()).mean()


class OrderConfig(Config):
    """Each setting has a meaning and a default; `tutelage show order` lists them."""

    order_weight: float = Field(1.0, ge=0, description="Weight of the order term.")
    margin: float = Field(0.5, gt=0, description="Margin between two classes, in logits.")


@register_method(
    "order", summary="keep the teacher's order of the classes", source="made up for this example"
)
class Order(Method):
    """L = w_ce CE(z, y) + w_order mean max(0, m - (z_a - z_b) sign(t_a - t_b))."""

    Config: ClassVar[type[Config]] = OrderConfig

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        loss = order_loss(outs.student.logits, teacher_of(outs).logits, self.config.margin)
        return {"ce": self.supervised(batch, outs.student), "order": self.config.order_weight * loss}


def main() -> None:
    """Train a teacher on handwritten digits, then a student with the method."""
    settings = [
        "data.few_ratio=0.3",
        "data.batch_size=16",
        "optimiser.name=adamw",
        "optimiser.lr=0.003",
        "runtime.threads=1",
        "runtime.tensorboard=false",
    ]
    common = {"data": "digits", "device": "cpu", "epochs": 1}
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        tutelage.train(model="resnet8_cifar", out=runs / "teacher", settings=settings, **common)
        facts = tutelage.distill(
            student="resnet8_cifar",
            teacher="resnet8_cifar",
            teacher_weights=runs / "teacher" / "student.safetensors",
            method="order",
            out=runs / "student",
            settings=[*settings, "method.margin=1.0"],
            **common,
        )
    last = facts["summary"]["last"]
    print(f"order term {last['train']['terms']['order']:.3f}, test top-1 {last['test']['top1']:.1f}%")


if __name__ == "__main__":
    main()
