"""Tables: what makes a row, its statistics, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tutelage.errors import UserError
from tutelage.recipes import resolve
from tutelage.recipes.schema import UNDECISIVE
from tutelage.runs import RunFolder, as_dicts, as_markdown, as_table, gain, summarise
from tutelage.runs.results import NOT_LEARNT

MakeRun = Callable[..., Path]
RECIPE = resolve(None, {"student.name": "resnet8_cifar"})
ALONE, TAUGHT = (81.25, 79.5, 84.0), (90.5, 92.25, 91.0)


@pytest.fixture
def six(make_run: MakeRun) -> list[Path]:
    """Three seeds alone, three distilled; each run's best epoch is its first, two points above the last."""
    return [
        make_run(f"{method}-{seed}", method=method, seed=seed, top1=(value + 2, value))
        for method, values in (("none", ALONE), ("kd", TAUGHT))
        for seed, value in enumerate(values)
    ]


def test_a_row_has_mean_and_sample_deviation_of_the_last_epoch(six: list[Path]) -> None:
    alone, taught = summarise(six)
    for row, values in ((alone, ALONE), (taught, TAUGHT)):
        assert row.top1 == pytest.approx(np.mean(values), abs=1e-12)
        assert row.top1_std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        assert row.best_top1 == pytest.approx(np.mean(values) + 2, abs=1e-12)
        assert row.best_std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        assert row.seeds == (0, 1, 2)
        assert row.seconds == pytest.approx(11.0)
        assert (row.parameters, row.macs, row.best_by) == (78_042, 12_400_000, "test")
    assert (alone.method, alone.teacher, alone.teacher_top1) == ("none", None, None)
    assert (taught.method, taught.teacher, taught.teacher_top1) == ("kd", "resnet20_cifar", 98.875)
    assert [Path(run).name for run in taught.runs] == ["kd-0", "kd-1", "kd-2"]


def test_seeds_are_sorted_and_rows_keep_the_order_given(six: list[Path]) -> None:
    rows = summarise(RunFolder.open(path) for path in reversed(six))
    assert [row.method for row in rows] == ["kd", "none"]
    assert rows[0].seeds == (0, 1, 2)


def test_one_seed_has_no_deviation(make_run: MakeRun) -> None:
    (row,) = summarise([make_run("one")])
    assert row.top1_std is None and row.best_std is None
    assert gain(row, row).standard_error is None


def test_the_gain_is_a_difference_of_means_with_its_standard_error(six: list[Path]) -> None:
    alone, taught = summarise(six)
    difference = gain(taught, alone)
    variances = np.var(TAUGHT, ddof=1) / 3 + np.var(ALONE, ddof=1) / 3
    assert difference.mean == pytest.approx(np.mean(TAUGHT) - np.mean(ALONE), abs=1e-12)
    assert difference.standard_error == pytest.approx(np.sqrt(variances), abs=1e-12)


def test_runs_of_different_protocols_are_refused_with_the_keys_that_differ(make_run: MakeRun) -> None:
    few = make_run("few")
    full = make_run("full", seed=1, protocol={"few_ratio": 1.0, "train_images": 1000})
    with pytest.raises(UserError) as caught:
        summarise([few, full])
    message = str(caught.value)
    for part in ("few_ratio 0.1 and 1.0", "train_images 100 and 1000", str(few), str(full)):
        assert part in message
    assert "epochs" not in message and "test_images" not in message


def test_a_key_that_only_one_protocol_has_differs_too(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="resolution None and 64"):
        summarise([make_run("a"), make_run("b", seed=1, protocol={"resolution": 64})])


def test_other_test_images_of_the_same_name_are_another_protocol(make_run: MakeRun) -> None:
    one, other = (make_run(d, seed=s, protocol={"test_digest": d}) for s, d in enumerate("ab"))
    with pytest.raises(UserError, match="test_digest a and b"):
        summarise([one, other])
    early = make_run("early", seed=2)  # of a version that didn't note it
    assert [row.seeds for row in summarise([early, one])] == [(0, 2)]
    with pytest.raises(UserError, match="test_digest a and b"):
        summarise([early, one, other])


def test_other_training_images_of_the_same_name_make_a_row_of_their_own(make_run: MakeRun) -> None:
    one, two, other = (
        make_run(f"run{seed}", seed=seed, facts={"train_digest": digest}) for seed, digest in enumerate("aab")
    )
    rows = summarise([one, other, two])
    assert [row.seeds for row in rows] == [(0, 1), (2,)]
    assert [row.variant for row in rows] == ['train_digest="a"', 'train_digest="b"']
    early = make_run("early", seed=3)
    assert [row.seeds for row in summarise([early, one, other])] == [(0, 3), (2,)]
    slower = make_run("slower", settings={"temperature": 2.0})
    assert [row.variant for row in summarise([one, slower])] == ["temperature=unset", "temperature=2.0"]


def test_the_same_seed_twice_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="same seed 4"):
        summarise([make_run("a", seed=4), make_run("b", seed=3), make_run("c", seed=4)])


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"temperature": 2.0}},
        {"facts": {"amp": "bfloat16"}},
        {"facts": {"normalisation": {"mean": [0.1, 0.1, 0.1], "std": [0.4, 0.4, 0.4]}}},
        {"recipe": {"optimiser": {"lr": 0.1}}},
        {"recipe": {"data": {"name": "digits", "batch_size": 64}}},
    ],
)
def test_whatever_else_differs_makes_a_row_of_its_own_and_is_named(make_run: MakeRun, changes: dict) -> None:
    rows = summarise([make_run("a"), make_run("b", seed=1, **changes)])
    assert [row.seeds for row in rows] == [(0,), (1,)]
    assert rows[0].variant != rows[1].variant != ""
    _, body = as_markdown(rows).split("---: |\n", 1)
    first, second = (line.split("|")[1] for line in body.splitlines())
    assert first != second


def test_another_teacher_makes_a_row_of_its_own(make_run: MakeRun) -> None:
    other = {"name": "resnet20_cifar", "parameters": 1, "weights_hash": "other", "test": {"top1": 50.0}}
    rows = summarise([make_run("a"), make_run("b", seed=1, facts={"teacher": other})])
    assert [row.teacher_top1 for row in rows] == [98.875, 50.0]
    assert rows[1].variant == 'teacher.weights="other"'


def test_seeds_of_one_weights_file_are_one_row_whatever_their_classifiers(make_run: MakeRun) -> None:
    def started(name: str, seed: int, origin: str) -> Path:
        network = {"name": "resnet8_cifar", "parameters": 1, "macs": 1}
        own = {**network, "weights_hash": f"with the head of seed {seed}", "origin_hash": origin}
        recipe = {"student": {"name": "resnet8_cifar", "weights": f"/of/{name}/s.safetensors"}}
        return make_run(name, seed=seed, recipe=recipe, facts={"student": own})

    rows = summarise([started("a", 0, "one"), started("b", 1, "one"), started("c", 2, "two")])
    assert [row.seeds for row in rows] == [(0, 1), (2,)]
    assert rows[1].variant == 'student.weights="two"'


def test_peers_count_by_their_weights_and_not_by_their_folders(make_run: MakeRun) -> None:
    def taught(name: str, seed: int, origin: str) -> Path:
        peers = [{"name": "vgg8_cifar", "weights": file} for file in (None, f"/of/{name}.pth")]
        facts = [{"weights_hash": f"fresh {seed}"}, {"weights_hash": "any", "origin_hash": origin}]
        return make_run(name, seed=seed, recipe={"peers": peers}, facts={"peers": facts})

    rows = summarise([taught("a", 0, "one"), taught("b", 1, "one"), taught("c", 2, "two")])
    assert [row.seeds for row in rows] == [(0, 1), (2,)]


def test_settings_that_teach_nothing_make_no_rows(make_run: MakeRun) -> None:
    assert {section: set(names) for section, names in NOT_LEARNT.items()} == UNDECISIVE
    for section, names in NOT_LEARNT.items():
        assert names and set(names) <= type(getattr(RECIPE, section)).model_fields.keys()

    def run(seed: int) -> Path:
        recipe = {part: {name: f"{name} {seed}" for name in names} for part, names in NOT_LEARNT.items()}
        return make_run(f"run{seed}", seed=seed, recipe=recipe)

    assert [row.seeds for row in summarise([run(0), run(1)])] == [(0, 1)]


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_an_unfinished_run_is_refused(make_run: MakeRun, status: str) -> None:
    with pytest.raises(UserError, match=f"not finished.*{status}.*tutelage resume"):
        summarise([make_run("a", facts={"status": status})])


def test_no_runs_missing_runs_and_damaged_records_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to put"):
        summarise([])
    with pytest.raises(UserError, match="holds no run"):
        summarise([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"incomplete.*best"):
        summarise([make_run("a", facts={"summary": {"last": {}}})])
    with pytest.raises(UserError, match="format 99"):
        summarise([make_run("b", facts={"format": 99})])
    damaged = make_run("c")
    (damaged / "recipe.yaml").write_text("a: [")
    with pytest.raises(UserError, match="can't be read as YAML"):
        summarise([damaged])
    (damaged / "recipe.yaml").write_text("just words")
    with pytest.raises(UserError, match="holds no recipe"):
        summarise([damaged])


def test_dicts_survive_json(six: list[Path]) -> None:
    rows = as_dicts(summarise(six))
    assert json.loads(json.dumps(rows)) == rows
    assert rows[1]["seeds"] == [0, 1, 2] and rows[1]["top1"] == pytest.approx(np.mean(TAUGHT))


def printed(rows: list) -> str:
    console = Console(file=StringIO(), width=200, color_system=None)
    console.print(as_table(rows))
    return console.file.getvalue()


def test_terminal_and_markdown_show_the_same_numbers(six: list[Path]) -> None:
    rows = summarise(six)
    expected = [
        f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" for values in (ALONE, TAUGHT)
    ]
    for text in (printed(rows), as_markdown(rows)):
        for part in (*expected, "resnet20_cifar (98.88)", "78,042", "12.4 M", "11.0 s", "chosen on test"):
            assert part in text
    lines = as_markdown(rows).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1


def test_names_can_break_neither_table(make_run: MakeRun) -> None:
    rows = summarise([make_run("a", student="a|b [red]c\nd")])
    assert "[red]" in printed(rows)
    lines = as_markdown(rows).splitlines()
    assert len(lines) == 3 and "a\\|b [red]c d" in lines[2]


def test_best_epochs_chosen_on_validation_are_called_so(make_run: MakeRun) -> None:
    run = make_run("a")
    facts = RunFolder.open(run).facts()
    facts["summary"]["best"]["by"] = "val"
    RunFolder.open(run).update(summary=facts["summary"])
    text = as_markdown(summarise([run]))
    assert "test at best val epoch" in text and "chosen on test" not in text
