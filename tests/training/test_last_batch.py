"""A last batch of one image is tried before an epoch of work is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import tutelage
from killing import same
from toys import BRIEF_RUN, saved_network
from tutelage.errors import UserError
from tutelage.runs.record import RunFolder

ONE_LEFT = ("data.batch_size=23", "schedule.epochs=1")  # 70 = 3 * 23 + 1


def distill(out: Path, teacher: Path, method: str, *more: str) -> dict[str, Any]:
    return tutelage.distill(
        teacher="resnet8_cifar",
        teacher_weights=teacher,
        student="resnet8_cifar",
        method=method,
        data="shapes",
        out=out,
        settings=[*BRIEF_RUN, *ONE_LEFT, *more],
    )


@pytest.mark.parametrize("method", ["afd", "reviewkd"])
def test_one_that_a_batch_norm_cannot_do_with_is_refused_at_once(method: str, tmp_path: Path) -> None:
    teacher = saved_network(tmp_path, "resnet8_cifar")
    with pytest.raises(UserError, match=r"single image \(70 in batches of 23\).*drop_last=true"):
        distill(tmp_path / "refused", teacher, method)
    assert not RunFolder(tmp_path / "refused").metrics()
    done = distill(tmp_path / "dropped", teacher, method, "data.drop_last=true")
    assert done["status"] == "finished"


@pytest.mark.parametrize(("method", "setting"), [("crd", "negatives=8"), ("pat", "dim=32")])
def test_trying_it_leaves_no_trace(
    method: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a memory and random numbers from the method's generator, or with one that grows with the batch."""
    teacher = saved_network(tmp_path, "resnet8_cifar")
    distill(tmp_path / "tried", teacher, method, f"method.{setting}")
    monkeypatch.setattr("tutelage.training.loop.check_last_batch", lambda *arguments: None)
    distill(tmp_path / "untried", teacher, method, f"method.{setting}")
    tried, untried = (load_file(tmp_path / name / "student.safetensors") for name in ("tried", "untried"))
    assert same(tried, untried)
