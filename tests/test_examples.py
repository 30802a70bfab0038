"""The examples run, on a few images, and do what their texts say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.methods import method_names

FOLDER = Path(__file__).resolve().parent.parent / "examples"
SHARED = {"digits"}
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in SHARED)

# One process for all: importing PyTorch and Lightning takes longer than the examples do. Methods and networks
# that they register stay out of this one, where other tests count what there is.
ALL = """
import contextlib, io, json, os, runpy, sys, traceback
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import digits
digits.COUNT, digits.EPOCHS = 48, 1
heard = {}
real = os.fdopen(os.dup(1), "w")
for name in sys.argv[2:]:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(f"{sys.argv[1]}/{name}.py", run_name="__main__")
        failed = None
    except BaseException:
        failed = traceback.format_exc()
    heard[name] = [printed.getvalue(), failed, sorted(os.listdir("."))]
print(json.dumps(heard), file=real)
"""


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each example printed; all of them have to end well and leave nothing behind."""
    place = tmp_path_factory.mktemp("elsewhere")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TUTELAGE_CACHE": str(place.parent / "cache")}
    call = [sys.executable, "-c", ALL, str(FOLDER), *NAMES]
    done = subprocess.run(call, capture_output=True, text=True, cwd=place, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, (_, failed, left) in found.items():
        assert failed is None, f"{name}: {failed}"
        assert left == [], f"{name} leaves {left}"
    return {name: printed for name, (printed, _, _) in found.items()}


def percentages(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(\d+\.\d)%", text)]


CHECKS: dict[str, Callable[[str], bool]] = {
    "lightning_loop": lambda text: "the checkpoint has 59 entries and no teacher" in text,
    "new_method": lambda text: "order term" in text and len(percentages(text)) == 1,
    "new_network": lambda text: "72,954 parameters, logits (2, 10)" in text,
    "new_pair": lambda text: "ofa adds" in text and len(percentages(text)) == 2,
    "own_images": lambda text: text.count("$ tutelage ") == 5 and "loads the same network to the bit" in text,
    "plain_loop": lambda text: "hint" in text and "56 of them the student's" in text,
    "timm_task": lambda text: len(percentages(text)) == 3 and percentages(text)[0] == percentages(text)[2],
}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_does_what_it_says(name: str, heard: dict[str, str]) -> None:
    assert CHECKS[name](heard[name]), heard[name]


def test_every_example_is_checked_and_named_in_the_document() -> None:
    assert set(CHECKS) == set(NAMES)
    text = (FOLDER.parent / "docs" / "custom-use.md").read_text(encoding="utf-8")
    assert all(f"examples/{name}.py" in text for name in {*NAMES, *SHARED})


def test_the_method_of_the_example_is_no_method_of_ours() -> None:
    assert "order" not in method_names()
