"""Reading the golden numbers and comparing with them.

The folder is ``tests/golden``, or the one named by the environment variable ``TUTELAGE_GOLDEN``, which has
the same layout but may hold other seeds, sizes, hyper-parameters and more cases. So a test takes everything
from the index and the arrays and knows a case by its ``kind`` and ``method`` alone.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

OWN_ROOT = Path(__file__).resolve().parent.parent / "golden"

Case = dict[str, Any]


def golden_root() -> Path:
    """The folder of golden numbers that this run is to agree with."""
    return Path(os.environ.get("TUTELAGE_GOLDEN") or OWN_ROOT).resolve()


def index(root: Path | None = None) -> dict[str, Any]:
    """The content of ``index.json`` of ``root`` (default: ``golden_root()``)."""
    return _read_index(root or golden_root())


@functools.cache
def _read_index(root: Path) -> dict[str, Any]:
    return json.loads((root / "index.json").read_text(encoding="utf-8"))


def cases(kind: str | None = None, root: Path | None = None) -> list[Case]:
    """All cases with numbers (status ``ok``), of one kind or of all.

    Raises:
        AssertionError: A case has a status that is neither ``ok`` nor ``not available``, so nobody can tell
            whether it is to be checked.
    """
    found = []
    for case in index(root)["cases"]:
        assert case["status"] in {"ok", "not available"}, f"{case['id']}: unknown status {case['status']!r}"
        if case["status"] == "ok" and kind in (None, case["kind"]):
            found.append(case)
    return found


def arrays(case: Case, root: Path | None = None) -> dict[str, np.ndarray]:
    """Every array of a case by name.

    Raises:
        AssertionError: The file doesn't hold what the index says it holds.
    """
    with np.load((root or golden_root()) / case["file"], allow_pickle=False) as file:
        loaded = {name: file[name] for name in file.files}
    described = {name: [list(array.shape), str(array.dtype)] for name, array in loaded.items()}
    assert described == case["arrays"], f"{case['id']}: {case['file']} doesn't hold what the index says"
    return loaded


def check(
    name: str,
    got: Tensor | np.ndarray | float,
    expected: np.ndarray,
    case: Case,
    precision: str = "float64",
) -> None:
    """Assert that ``got`` agrees with ``expected`` by the rules of the golden README.

    Args:
        name: The array's name, for the message.
        got: What was computed.
        expected: The golden array; integers have to agree exactly, floats within the case's tolerance.
        case: Where the tolerance comes from.
        precision: ``float64`` or ``float32``, whichever ``got`` was computed in.

    Raises:
        AssertionError: With case, array, largest difference and where it is.
    """
    value = got.detach().cpu().numpy() if isinstance(got, Tensor) else np.asarray(got)
    where = f"{case['id']} {name} ({precision})"
    assert value.shape == expected.shape, f"{where}: shape {value.shape}, expected {expected.shape}"
    allowed = _allowed(expected, case["tolerance"][precision])
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(value.astype(np.float64) - expected.astype(np.float64))
        good = (value == expected) | (difference <= allowed) | (np.isnan(value) & np.isnan(expected))
    if good.all():
        return
    excess = np.where(good, -1.0, np.where(np.isnan(difference), np.inf, difference - allowed))
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    at = tuple(map(int, worst))
    raise AssertionError(
        f"{where}: {np.count_nonzero(~good)} of {good.size} values disagree; at {at} got {value[worst]:.9g}, "
        f"expected {expected[worst]:.9g}, difference {difference[worst]:.3g}, allowed {allowed[worst]:.3g}"
    )


def check_all(
    case: Case,
    expected: Mapping[str, np.ndarray],
    got: Mapping[str, Tensor | np.ndarray | float],
    precision: str = "float64",
) -> None:
    """Check every ``out.*`` and ``grad.*`` array of a case.

    Args:
        case: The case.
        expected: Its arrays, as ``arrays`` returns them.
        got: What was computed, under the same names (``out.loss``, ``grad.logits_student``); more is allowed.
        precision: See ``check``.

    Raises:
        AssertionError: A value disagrees, or the case holds an array that ``got`` lacks.
    """
    wanted = {name: array for name, array in expected.items() if name.startswith(("out.", "grad."))}
    missing = sorted(set(wanted) - set(got))
    assert not missing, f"{case['id']}: this test doesn't compute {', '.join(missing)}"
    for name, array in wanted.items():
        check(name, got[name], array, case, precision)


def _allowed(expected: np.ndarray, tolerance: Mapping[str, float]) -> np.ndarray:
    """Largest accepted absolute difference for every entry."""
    if expected.dtype.kind != "f":
        return np.zeros(expected.shape)
    size = np.abs(expected.astype(np.float64))
    largest = size.max(initial=0.0)
    absolute = tolerance.get("atol", 0.0) + tolerance.get("atol_rel_max", 0.0) * largest
    return absolute + tolerance.get("rtol", 0.0) * size
