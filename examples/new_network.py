"""A new network: registered with timm, so that every method, export and timm itself know it.

timm's builder makes it, which brings weights from files and other class counts along. For pooled features
methods ask for `forward_features`, `forward_head` and `get_classifier`; with `feature_info` and
`forward_intermediates` its stages can be tapped too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

import tutelage

WIDTHS = (16, 32, 64)


class Plain(nn.Module):
    """Three stages of two convolutions, pooled, and one linear layer."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, widths[-1]
        inputs = (in_chans, *widths[:-1])
        self.stages = nn.Sequential(
            *(_stage(a, b, 1 + (i > 0)) for i, (a, b) in enumerate(zip(inputs, widths, strict=True)))
        )
        self.head = nn.Linear(widths[-1], num_classes)
        self.feature_info = [
            {"num_chs": width, "reduction": 2**number, "module": f"stages.{number}"}
            for number, width in enumerate(widths)
        ]

    def forward_features(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` to the map before pooling `[B, C, H', W']`."""
        return self.stages(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The map to logits `[B, N]`, or to the pooled vector `[B, C]`."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self, images: Tensor, indices: Sequence[int] | None = None, **options: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """The map, and the features of the stages in ``indices`` (None for all)."""
        features = []
        for number, stage in enumerate(self.stages):
            images = stage(images)
            if indices is None or number in indices:
                features.append(images)
        return images, features

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Another number of classes."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes)


def _stage(inputs: int, outputs: int, stride: int) -> nn.Module:
    first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
    return nn.Sequential(
        first, nn.BatchNorm2d(outputs), nn.ReLU(), second, nn.BatchNorm2d(outputs), nn.ReLU()
    )


default_cfgs = generate_default_cfgs(
    {
        "plain": {
            "input_size": (3, 32, 32),
            "num_classes": 10,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "crop_pct": 1.0,
            "first_conv": "stages.0.0",
            "classifier": "head",
        }
    }
)


@register_model
def plain(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The network `plain`."""
    return build_model_with_cfg(Plain, "plain", pretrained, **kwargs)


def main() -> None:
    """Teach it by a ResNet through its stages, export it, and load it with timm."""
    settings = ["runtime.threads=1", "runtime.tensorboard=false", "data.few_ratio=0.3"]
    common = {"data": "digits", "device": "cpu", "settings": settings}
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        tutelage.train(model="resnet8_cifar", epochs=1, out=runs / "teacher", **common)
        weights = runs / "teacher" / "student.safetensors"
        teacher = {"teacher": "resnet8_cifar", "teacher_weights": weights}
        tutelage.distill(student="plain", method="at", epochs=1, out=runs / "student", **teacher, **common)
        quick = {"program": False, "onnx": False, "latency": False}
        tutelage.export(runs / "student", out=runs / "exported", **quick)
        model = timm.create_model(f"local-dir:{runs / 'exported'}", pretrained=True).eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, 32, 32))
    print(f"plain: {sum(p.numel() for p in model.parameters()):,} parameters, logits {tuple(logits.shape)}")


if __name__ == "__main__":
    main()
