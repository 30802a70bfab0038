"""CRD over several steps, and its draws by weights, against RepDistiller."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from parity.golden import Case, arrays, cases, check, check_all
from parity.test_losses import leaves
from tutelage.data.negatives import alias_table
from tutelage.methods.crd import Contrast

METHODS = {"CRD", "CRD alias sampling"}
FULL = [case for case in cases("loss") if case["method"] == "CRD"]
ALIAS = [case for case in cases("data") if case["method"] == "CRD alias sampling"]


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("case", FULL, ids=lambda case: case["id"])
def test_consecutive_steps(case: Case, precision: str) -> None:
    expected = arrays(case)
    given = leaves(expected, getattr(torch, precision))
    hyper = case["hyper"]
    contrast = Contrast(
        *(given[f"param.embed_{side}.weight"].shape[1] for side in "st"),
        hyper["feat_dim"],
        hyper["n_data"],
        hyper["T"],
        hyper["momentum"],
    ).to(getattr(torch, precision))
    parameters = {}
    with torch.no_grad():
        for side, name in (("s", "student"), ("t", "teacher")):
            for part in ("weight", "bias"):
                own = contrast.get_parameter(f"embed_{side}.linear.{part}")
                own.copy_(given[f"param.embed_{side}.{part}"])
                parameters[f"embed_{side}.{part}"] = own
            contrast.get_buffer(f"memory_{side}.rows").copy_(given[f"in.memory_{name}0"])
    got: dict[str, Any] = {}
    steps = sum(re.fullmatch(r"in\.step\d+\.idx", name) is not None for name in expected)
    for step in (f"step{number}" for number in range(steps)):
        student, teacher = given[f"in.{step}.f_s"], given[f"in.{step}.f_t"]
        index, chosen = given[f"in.{step}.idx"], given[f"in.{step}.contrast_idx"]
        assert torch.equal(chosen[:, 0], index)
        loss, state = contrast(student, teacher, chosen)
        sources = {"f_s": student, "f_t": teacher, **parameters}
        gradients = torch.autograd.grad(loss, list(sources.values()))
        got |= {f"grad.{step}.{name}": value for name, value in zip(sources, gradients, strict=True)}
        contrast.write(index, state)
        z = contrast.log_z.exp()
        got |= {
            f"out.{step}.loss": loss,
            f"out.{step}.Z_student": z[0],
            f"out.{step}.Z_teacher": z[1],
            f"out.{step}.memory_student": contrast.memory_s.rows.clone(),
            f"out.{step}.memory_teacher": contrast.memory_t.rows.clone(),
        }
    check_all(case, expected, got, precision)


@pytest.mark.parametrize("case", ALIAS, ids=lambda case: case["id"])
def test_alias_tables(case: Case) -> None:
    given = arrays(case)
    table = alias_table(torch.from_numpy(given["in.weights"]))
    implied = table.keep.double().numpy().copy()
    np.add.at(implied, table.other.numpy(), 1 - table.keep.double().numpy())
    implied /= len(implied)
    got = {
        "out.prob": table.keep,
        "out.alias": table.other,
        "out.implied_distribution": implied,
        "out.target_distribution": implied,
    }
    for name, expected in given.items():
        if name.startswith("out."):
            check(name, got[name], expected, case)
