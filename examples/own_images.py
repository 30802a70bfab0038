"""Your own image folder, from files to an exported student: the commands, run one after the other.

    photos/train/CLASS/*.png    photos/val/CLASS/*.png

Here the photos are drawn: discs, stripes and plain surfaces. With your own, leave `draw` out and choose
larger networks, a larger `--set data.image_size=...` and more epochs.
"""

from __future__ import annotations

import os
import random
import shlex
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from tutelage.cli import main as tutelage

SMALL = "--epochs 4 --batch-size 16 --device cpu --quiet --set data.image_size=32 --set runtime.workers=0"
DATA = "--data folder --data-dir photos"
COMMANDS = (
    f"train --model resnet14_cifar {DATA} {SMALL} --out teacher",
    f"doctor --teacher resnet14_cifar --teacher-weights teacher/student.safetensors --student resnet8_cifar "
    f"--method dkd {DATA} {SMALL}",
    f"distill --teacher resnet14_cifar --teacher-weights teacher/student.safetensors --student resnet8_cifar "
    f"--method dkd {DATA} {SMALL} --out student",
    f"eval --model resnet8_cifar --weights student/student.safetensors {DATA} --device cpu --quiet "
    "--set data.image_size=32 --set runtime.workers=0",
    "export --run student --out exported --no-program --no-onnx --no-latency --quiet",
)


def draw(folder: Path, count: int, seed: int) -> None:
    """Images of three classes, of uneven sizes as photos are."""
    chance = random.Random(seed)
    for name in ("disc", "plain", "stripes"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            width, height = chance.randint(36, 60), chance.randint(36, 60)
            image = Image.new("RGB", (width, height), tuple(chance.randint(0, 90) for _ in range(3)))
            brush, colour = ImageDraw.Draw(image), tuple(chance.randint(150, 255) for _ in range(3))
            if name == "disc":
                brush.ellipse((8, 8, width - 8, height - 8), fill=colour)
            elif name == "stripes":
                for left in range(4, width, 10):
                    brush.rectangle((left, 0, left + 4, height), fill=colour)
            image.save(folder / name / f"{number:03}.png")


def main() -> None:
    """Draw the photos, then run the commands."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            draw(Path("photos/train"), count=24, seed=0)
            draw(Path("photos/val"), count=6, seed=1)
            for command in COMMANDS:
                print(f"$ tutelage {command}", flush=True)
                if tutelage(shlex.split(command)):
                    raise SystemExit(1)
                print(flush=True)
        finally:
            os.chdir(before)


if __name__ == "__main__":
    main()
