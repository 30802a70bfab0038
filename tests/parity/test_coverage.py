"""Every golden case is checked by exactly one parity test module or waits for a method still to come."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from parity import coverage
from parity.coverage import NOT_YET, NOT_YET_SIZE, NotYet, complaints, declared, parity_modules, picked_up
from parity.golden import OWN_ROOT, Case, arrays, cases, check, check_all, golden_root, index

MODULES = parity_modules()
PICKS = {name: picked_up(module) for name, module in MODULES.items()}


def a_case(name: str, method: str, kind: str = "loss") -> Case:
    tolerance = {"float64": {"rtol": 1e-7, "atol": 1e-10}, "float32": {"atol_rel_max": 0.01}}
    return {"id": name, "kind": kind, "method": method, "status": "ok", "tolerance": tolerance}


def test_every_case_is_checked_or_waits() -> None:
    wrong = complaints(cases(), PICKS, declared(MODULES.values()))
    assert not wrong, "\n".join(wrong)


def test_declared_methods_are_picked_up() -> None:
    found = {case["id"]: case["method"] for case in cases()}
    for name, module in MODULES.items():
        strangers = {found[case_id] for case_id in PICKS[name]} - set(module.METHODS)
        assert not strangers, f"{name} tests methods that it doesn't declare: {strangers}"


def test_declared_methods_exist_and_belong_to_one_module() -> None:
    owners = Counter(method for module in MODULES.values() for method in module.METHODS)
    known = {case["method"] for case in cases(root=OWN_ROOT)}
    assert set(owners) <= known, f"no golden case is of {set(owners) - known}"
    assert not [method for method, count in owners.items() if count > 1]


def test_not_yet_only_shrinks() -> None:
    assert len(NOT_YET) == NOT_YET_SIZE, "lower NOT_YET_SIZE with the list; it never grows"
    assert len(set(NOT_YET)) == len(NOT_YET)
    own = cases(root=OWN_ROOT)
    idle = [entry for entry in NOT_YET if not any(entry.matches(case) for case in own)]
    assert not idle, f"these match no golden case: {idle}"


def test_every_own_file_holds_what_the_index_says() -> None:
    own = cases(root=OWN_ROOT)
    assert len({case["id"] for case in own}) == len(own)
    for case in own:
        arrays(case, root=OWN_ROOT)


def test_a_foreign_folder_is_read_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available = a_case("losses/other_seed", "Hinton KD")
    missing = a_case("x", "y") | {"status": "not available"}
    (tmp_path / "index.json").write_text(json.dumps({"cases": [available, missing]}))
    monkeypatch.setenv("TUTELAGE_GOLDEN", str(tmp_path))
    assert golden_root() == tmp_path.resolve()
    assert [case["id"] for case in cases("loss")] == ["losses/other_seed"]
    assert cases("model") == []


def test_an_unknown_status_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"cases": [{**a_case("x", "y"), "status": "pending"}]}))
    with pytest.raises(AssertionError, match="unknown status"):
        cases(root=tmp_path)


@pytest.mark.parametrize(
    ("name", "method", "expected"),
    [
        ("losses/kd_seen", "Hinton KD", None),
        ("losses/kd_unseen", "Hinton KD", "no test picks it up"),
        ("losses/to_come_1", "to come", None),
        ("losses/came", "to come", "still listed"),
        ("losses/new", "new method", "no parity test knows"),
        ("losses/twice", "Hinton KD", "several modules"),
    ],
)
def test_complaints(name: str, method: str, expected: str | None) -> None:
    picks = {"one": {"losses/kd_seen", "losses/twice", "losses/came"}, "two": {"losses/twice"}}
    found = complaints([a_case(name, method)], picks, {"Hinton KD"}, [NotYet("loss", "to come")])
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]
    assert coverage.covered(a_case(name, method), picks) == (name in {"losses/kd_seen", "losses/came"})


def test_not_yet_matches_kind_method_and_id() -> None:
    entry = NotYet("model", "HSAKD model", "models/*resnet*")
    assert entry.matches(a_case("models/hsakd.resnet20_aux", "HSAKD model", "model"))
    assert not entry.matches(a_case("models/hsakd.vgg8_aux", "HSAKD model", "model"))
    assert not entry.matches(a_case("models/hsakd.resnet20_aux", "DPCD model", "model"))
    assert not entry.matches(a_case("models/hsakd.resnet20_aux", "HSAKD model", "loss"))


def test_only_what_runs_is_picked_up() -> None:
    one, two, three, four = (a_case(name, "Hinton KD") for name in "abcd")

    @pytest.mark.parametrize("case", [one])
    @pytest.mark.parametrize("precision", ["float64"])
    def test_plain(case: Case, precision: str) -> None: ...

    @pytest.mark.parametrize(
        ("case", "scale"), [(two, 1), pytest.param(three, 2, marks=pytest.mark.skip)], ids=str
    )
    def test_tuples(case: Case, scale: int) -> None: ...

    @pytest.mark.skip
    @pytest.mark.parametrize("case", [four])
    def test_skipped(case: Case) -> None: ...

    module = SimpleNamespace(test_plain=test_plain, test_tuples=test_tuples, test_skipped=test_skipped)
    assert picked_up(module) == {"a", "b"}


def test_check_applies_the_tolerances() -> None:
    case = a_case("c", "m")
    expected = np.array([1.0, 100.0])
    check("out.x", expected + 1e-8, expected, case)
    check("out.x", expected + 0.9, expected, case, "float32")
    for wrong in (expected + 1e-6, expected[:1], expected * float("nan")):
        with pytest.raises(AssertionError, match=r"c out\.x"):
            check("out.x", wrong, expected, case)
    with pytest.raises(AssertionError):
        check("out.x", expected + 1.1, expected, case, "float32")
    with pytest.raises(AssertionError):
        check("out.n", (expected + 1).astype(int), expected.astype(int), case, "float32")
    with pytest.raises(AssertionError, match=r"doesn't compute grad\.y"):
        check_all(case, {"out.x": expected, "grad.y": expected, "in.z": expected}, {"out.x": expected})


def test_index_has_cases() -> None:
    assert index(OWN_ROOT)["format"] == 1
    assert cases(root=OWN_ROOT)
