"""A pair nobody published: a convolutional teacher, a transformer student, of timm, at a size of your own.

First look, then train: the doctor says which stages a method would tap, what it adds and what a step costs.
Small settings make both networks tiny here; leave `args` out for those that timm knows by these names.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tutelage

TEACHER = "convnext_atto"
STUDENT = "vit_tiny_patch16_224"
SMALL_TEACHER = "{depths: [1, 1, 1, 1], dims: [8, 16, 24, 32]}"
SMALL_STUDENT = "{img_size: 32, patch_size: 8, embed_dim: 48, depth: 4, num_heads: 3}"
COMMON = {"data": "shapes", "device": "cpu"}
SETTINGS = [
    "data.few_ratio=0.1",
    "data.batch_size=32",
    "optimiser.name=adamw",
    "optimiser.lr=0.001",
    "runtime.threads=1",
    "runtime.tensorboard=false",
]


def main() -> None:
    """Train a teacher, look at the pair, distil with two methods."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        made = [f"student.args={SMALL_TEACHER}", *SETTINGS]
        tutelage.train(model=TEACHER, epochs=1, settings=made, out=runs / "teacher", **COMMON)
        pair = {
            "teacher": TEACHER,
            "teacher_weights": runs / "teacher" / "student.safetensors",
            "student": STUDENT,
            "settings": [f"teacher.args={SMALL_TEACHER}", f"student.args={SMALL_STUDENT}", *SETTINGS],
            **COMMON,
        }
        found = tutelage.doctor(method="ofa", epochs=1, **pair)
        for role, network in found["networks"].items():
            print(f"{role}: {network['name']}, {network['parameters']:,} parameters")
        print(f"ofa adds {found['method']['trainable_parameters']:,} parameters while training")
        for method in ("kd", "ofa"):
            facts = tutelage.distill(method=method, epochs=1, out=runs / method, **pair)
            print(f"{method}: test top-1 {facts['summary']['last']['test']['top1']:.1f}%")


if __name__ == "__main__":
    main()
