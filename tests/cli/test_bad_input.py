"""Whatever is wrong ends in one sentence with exit code 2 or 1; nothing is lost and nothing is executed."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import TINY, Run

Maker = Callable[..., Path]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("train", "--model", "resnet8_cifr"), "did you mean 'resnet8_cifar'"),
        (("train", "--model", "resnet8_cifar", "--data", "shaeps"), "did you mean 'shapes'"),
        (("train", "--recipe", "no/such"), "there is no recipe 'no/such'"),
        (("train", "--recipe", "missing.yaml"), "there is no recipe file missing.yaml"),
        (("distill", "--student", "resnet8_cifar", "--method", "kdd"), "did you mean 'kd'"),
        (("show", "dkdd"), "did you mean 'dkd'"),
        (("list", "models", "nothing_like_it"), "no model's name fits"),
        (("resume", "nowhere"), "nowhere holds no run"),
        (("train",), "--model"),
        (("distill",), "--student"),
        (("eval", "--model", "resnet8_cifar"), "--weights"),
        (("eval", "--weights", "w.safetensors"), "--model"),
        (("doctor", "--model", "a", "--student", "b"), "give one of them"),
        (("train", "--model", "resnet8_cifar", "--device", "tpu9"), "no device"),
        (("train", "--model", "resnet8_cifar", "--device", "cuda:77"), "--device cpu"),
        (("train", "--model", "resnet8_cifar", "--epochs", "0"), "'schedule.epochs' can't be 0"),
        (("train", "--model", "resnet8_cifar", "--few-ratio", "2"), "'data.few_ratio' can't be 2"),
        (("train", "--model", "resnet8_cifar", "--set", "seed"), "key.path=value"),
        (
            ("train", "--model", "resnet8_cifar", "--set", "student.args.widht=2"),
            "unexpected keyword argument 'widht'",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_names_and_values(run: Run, arguments: tuple[str, ...], hint: str) -> None:
    run(*arguments).assert_refused(2, hint)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("trian",), "Did you mean 'train'?"),
        (("train", "--epoch", "3"), "--epochs"),
        (("train", "--epochs", "many"), "--epochs"),
        (("train", "--model"), "--model"),
        (("list", "things"), "methods"),
        (("resume",), "tutelage resume --help"),
        (("weights",), "tutelage weights --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_command_lines(run: Run, arguments: tuple[str, ...], hint: str) -> None:
    run(*arguments).assert_refused(2, hint)


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("optimizer.lr=0.1", "'optimizer' is not a known setting; did you mean 'optimiser'?"),
        ("optimiser.learning_rat=0.1", "'optimiser.learning_rat' is not a known setting"),
        ("method.temprature=2", "'method.temprature' is not a known setting"),
        ("schedule.epoch=3", "did you mean 'epochs'?"),
        ("method.label_smothing=0.1", "did you mean 'label_smoothing'?"),
        ("optimiser.lr=[1", "not valid YAML"),
        ("optimiser.name=sdg", "did you mean 'sgd'"),
    ],
)
def test_wrong_settings(run: Run, setting: str, hint: str) -> None:
    run("train", "--model", "resnet8_cifar", *TINY, "--set", setting).assert_refused(2, hint)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"optimizer: {lr: 0.1}\n", "did you mean 'optimiser'?"),
        (b"student: {name: resnet8_cifar\n", "not valid YAML"),
        (b"seed: 1\nseed: 2\nstudent: resnet8_cifar\n", "not valid YAML, line 1"),
        (b"- a list\n", "must be a mapping"),
        (b"1: 2\nstudent: resnet8_cifar\n", "'1'"),
        (b"student: resnet8_cifar\nmethod: {name: kd, 3: 4}\n", "'method.3' can't be 3"),
        (b"\xff\xfe\x00binary", "not even text"),
        (b"student: !!python/object/apply:os.system ['touch struck']\n", "not valid YAML"),
    ],
)
def test_wrong_recipe_files(run: Run, content: bytes, hint: str) -> None:
    Path("recipe.yaml").write_bytes(content)
    run("train", "--recipe", "recipe.yaml", *TINY).assert_refused(2, hint)
    assert not Path("struck").exists()


class Strike:
    """Unpickling it creates a file."""

    def __reduce__(self) -> Any:
        return os.system, ("touch struck",)


def hostile_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": {"conv1.weight": Strike()}}))


def hostile_checkpoint(path: Path) -> None:
    torch.save({"state_dict": {"conv1.weight": Strike()}}, path)


def garbage(path: Path) -> None:
    path.write_bytes(b"\x07garbage" * 50)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half_a_checkpoint(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])


@pytest.mark.parametrize("write", [hostile_pickle, hostile_checkpoint, garbage, empty, half_a_checkpoint])
@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors", "bad.npz"])
def test_corrupt_and_hostile_weights(run: Run, write: Callable[[Path], None], name: str) -> None:
    write(Path(name))
    for arguments in (
        ("eval", "--model", "resnet8_cifar", "--data", "shapes", "--weights", name),
        ("weights", "import", name, "-o", "good.safetensors"),
        ("weights", "inspect", name),
    ):
        run(*arguments).assert_refused(2, name)
    assert not Path("struck").exists()
    assert not Path("good.safetensors").exists()


def test_missing_weights(run: Run) -> None:
    run("eval", "--model", "resnet8_cifar", "--data", "shapes", "--weights", "none.pth").assert_refused(
        2, "none.pth"
    )


def test_weights_of_another_class_count(run: Run, make_weights: Maker) -> None:
    weights = make_weights("resnet8_cifar", 100)
    result = run("eval", "--model", "resnet8_cifar", "--weights", weights, "--data", "shapes")
    result.assert_refused(2, "100", "10")


def test_weights_of_another_network(run: Run, make_weights: Maker) -> None:
    weights = make_weights("resnet14_cifar")
    result = run("eval", "--model", "resnet8_cifar", "--weights", weights, "--data", "shapes")
    result.assert_refused(2, str(weights))


def test_truncated_cifar_file(run: Run) -> None:
    folder = Path("cifar-100-python")
    folder.mkdir()
    (folder / "meta").write_bytes(bytes(1473))
    (folder / "train").write_bytes(bytes(1000))
    (folder / "test").write_bytes(bytes(1000))
    result = run("train", "--model", "resnet8_cifar", "--data", "cifar100", "--data-dir", ".")
    result.assert_refused(2, "truncated", "cifar-100-python")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_empty_folder(run: Run, name: str) -> None:
    Path("void").mkdir()
    run("train", "--model", "resnet8_cifar", "--data", name, "--data-dir", "void").assert_refused(2, "void")


def test_image_size_the_model_cannot_take(run: Run) -> None:
    result = run("train", "--model", "vit_tiny_patch16_224", *TINY)
    result.assert_refused(2, "32x32", "224")
    run("show", "vit_tiny_patch16_224", "--image-size", "32").assert_refused(2, "32x32")


def test_teacher_missing_or_useless(run: Run, make_weights: Maker) -> None:
    common = ("distill", "--student", "resnet8_cifar", *TINY)
    run(*common).assert_refused(2, "needs a teacher; give --teacher NAME --teacher-weights FILE")
    alone = run("train", "--model", "resnet8_cifar", *TINY, "--method", "kd")
    alone.assert_refused(2, "needs a teacher; use 'tutelage distill' with --teacher NAME")
    run(*common, "--teacher", "resnet14_cifar").assert_refused(2, "--teacher-weights")
    teacher = ("--teacher", "resnet14_cifar", "--teacher-weights", make_weights("resnet14_cifar"))
    run(*common, *teacher, "--method", "none").assert_refused(2, "uses no teacher")


@pytest.mark.parametrize("given", [("--method", "kd"), ("--method", "none", "--peer", "resnet8_cifar")])
def test_one_network_alone_is_no_mutual_learning(run: Run, given: tuple[str, ...]) -> None:
    result = run("mutual", "--student", "resnet8_cifar", *given, *TINY)
    result.assert_refused(2, "trains one network; take one of networks that teach each other (hssakd)")
    Path("recipe.yaml").write_text("student: resnet8_cifar\nmethod: kd\nteacher: resnet14_cifar\n")
    run("mutual", "--recipe", "recipe.yaml", *TINY).assert_refused(2, "method 'kd' trains one network")


@pytest.mark.parametrize("method", ["fsp", "kdsvd"])
def test_stages_that_do_not_pair(run: Run, make_weights: Maker, method: str) -> None:
    teacher = ("--teacher", "vgg8_cifar", "--teacher-weights", make_weights("vgg8_cifar"))
    result = run("distill", "--student", "resnet8_cifar", *teacher, "--method", method, *TINY, "--out", "run")
    result.assert_refused(2, f"method '{method}'", "3", "4")
    assert not Path("run").exists()


def test_a_stage_that_is_not_there(run: Run, make_weights: Maker) -> None:
    teacher = ("--teacher", "resnet14_cifar", "--teacher-weights", make_weights("resnet14_cifar"))
    result = run(
        "distill",
        "--student",
        "resnet8_cifar",
        *teacher,
        "--method",
        "fitnet",
        "--set",
        "method.stage=4",
        *TINY,
    )
    result.assert_refused(2, "method.stage is 4")


def test_an_existing_run_is_kept(run: Run) -> None:
    first = run("train", "--model", "resnet8_cifar", *TINY, "--out", "run", "--quiet", "--json")
    assert first.code == 0
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    run("train", "--model", "resnet8_cifar", *TINY, "--out", "run").assert_refused(
        2, "run already holds a run"
    )
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


def test_a_file_where_the_folder_should_be(run: Run) -> None:
    Path("taken").write_text("mine")
    run("train", "--model", "resnet8_cifar", *TINY, "--out", "taken").assert_refused(2, "taken is a file")
    run("train", "--model", "resnet8_cifar", *TINY, "--out", "taken/run").assert_refused(1, "can't write")
    assert Path("taken").read_text() == "mine"


def test_no_permission_to_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    run("train", "--model", "resnet8_cifar", *TINY).assert_refused(1, "can't write", "Permission denied")


TWO_EPOCHS = ("train", "--model", "resnet8_cifar", *TINY, "--epochs", "2", "--out", "run")


def state_epoch() -> int:
    return int(torch.load("run/state.pt", weights_only=True)["position"][1])


@pytest.mark.parametrize("file", ["state.pt", "student.safetensors", "run.json"])
def test_full_disk_keeps_the_last_state(run: Run, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == file and Path("run/state.pt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        run(*TWO_EPOCHS).assert_refused(1, "No space left on device")
    assert not list(Path("run").glob(".*.tmp"))
    if file != "run.json":
        assert state_epoch() == 1
    assert run("resume", "run", "--quiet").code == 0


def test_nan_loss_keeps_the_last_state(run: Run) -> None:
    wild = (
        "--set",
        "optimiser.lr=1e30",
        "--set",
        "schedule.warmup_epochs=1",
        "--set",
        "schedule.warmup_lr=0.01",
    )
    result = run(*TWO_EPOCHS, *wild, "--json")
    result.assert_refused(1, "the loss became", "run/state.pt")
    assert result.json["exit_code"] == 1 and "the loss became" in result.json["error"]
    assert state_epoch() == 1
    assert Path("run/student.safetensors").is_file()


def test_nan_loss_in_the_first_epoch(run: Run) -> None:
    result = run("train", "--model", "resnet8_cifar", *TINY, "--set", "optimiser.lr=1e30", "--out", "run")
    result.assert_refused(1, "the loss became", "no state was saved yet")
    assert not Path("run/student.safetensors").exists()


def test_a_run_that_was_tampered_with(run: Run) -> None:
    assert run("train", "--model", "resnet8_cifar", *TINY, "--out", "run").code == 0
    recipe = Path("run/recipe.yaml")
    text = recipe.read_text()
    recipe.write_text(text.replace("epochs: 1", "epochs: 5"))
    run("resume", "run").assert_refused(2, "not the recipe")
    recipe.write_text(text)
    state = Path("run/state.pt")
    whole = state.read_bytes()
    for broken in (whole[:500], b"", pickle.dumps(Strike())):
        state.write_bytes(broken)
        run("resume", "run").assert_refused(2, "run/state.pt")
    torch.save(torch.zeros(3), state)
    run("resume", "run").assert_refused(2, "run/state.pt")
    assert not Path("struck").exists()
    state.write_bytes(whole)
    Path("run/run.json").write_text("{")
    run("resume", "run").assert_refused(2, "run.json")
