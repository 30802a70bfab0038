"""What errors and warnings advise can be done, and what would be done in vain is said."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
from PIL import Image

from tutelage.models.creation import create_network
from tutelage.recipes import recipe_names, resolve
from tutelage.training.flags import fine_tuning
from tutelage.training.schedules import warmup_warning

from .conftest import TINY, Run

Maker = Callable[..., Path]
WARMUP = ("--set", "schedule.warmup_epochs=5")
NO_FULL_RATE = "no epoch has the full learning rate, because the warm-up (schedule.warmup_epochs=5)"


def write_pictures(folder: Path) -> None:
    for split in ("train", "val"):
        for place, kind in enumerate(("cat", "dog")):
            (folder / split / kind).mkdir(parents=True)
            for number in range(4):
                image = Image.new("RGB", (40, 40), (60 * place, 20 * number, 90))
                image.save(folder / split / kind / f"{number}.png")


def test_the_advised_fine_tuning_can_be_pasted(run: Run, make_weights: Maker) -> None:
    write_pictures(Path("my pictures"))
    named = ("--model", "resnet8_cifar", "--weights", make_weights("resnet8_cifar", 7))
    data = ("--data", "folder", "--data-dir", "my pictures", "--set", "data.image_size=32")
    refused = run("eval", *named, *data, "--set", "runtime.workers=0")
    refused.assert_refused(2, "fine-tune it first: tutelage train --model resnet8_cifar", "'my pictures'")
    command = shlex.split(refused.err.splitlines()[-1].split("fine-tune it first: tutelage ")[1])
    quick = ("--epochs", "1", "--device", "cpu", "--set", "runtime.workers=0", "--quiet", "--out", "tuned")
    assert run(*command, *quick).code == 0
    tuned = ("eval", "--model", "resnet8_cifar", "--weights", "tuned/student.safetensors")
    assert run(*tuned, *data, "--device", "cpu", "--set", "runtime.workers=0").code == 0


def test_advised_fine_tuning_keeps_what_the_network_needs() -> None:
    values = resolve(
        None,
        {
            "data": {"name": "hfds/some", "label_column": "kind", "download": True, "few_ratio": 0.5},
            "student": {"name": "vit", "args": {"pretrained": True, "drop_rate": 0.1, "embed": [1, 2]}},
        },
    )
    assert fine_tuning(values.student, values.data, 224) == (
        "tutelage train --model vit --pretrained --data hfds/some --download --set data.label_column=kind "
        "--set student.image_size=224 --set student.args.drop_rate=0.1 --set 'student.args.embed=[1, 2]'"
    )


@pytest.mark.parametrize("epochs", ["1", "5"])
def test_a_warmup_that_outlasts_the_run_is_said(run: Run, epochs: str) -> None:
    train = ("--model", "resnet8_cifar", *TINY, "--epochs", epochs, *WARMUP)
    assert f"{NO_FULL_RATE} lasts as long as the run (schedule.epochs={epochs})" in run("train", *train).err
    found = run("doctor", *train, "--no-measure", "--json").json
    assert [text for text in found["warnings"] if text.startswith(NO_FULL_RATE)]


def test_a_warmup_within_the_run_is_no_matter(run: Run) -> None:
    train = ("--model", "resnet8_cifar", *TINY, "--epochs", "6", *WARMUP)
    assert "no warnings" in run("doctor", *train, "--no-measure").out


def test_a_probes_warmup_is_looked_at_too(run: Run, make_weights: Maker) -> None:
    named = ("probe", "--model", "resnet8_cifar", "--weights", make_weights("resnet8_cifar"))
    few = ("--data", "shapes", "--few-ratio", "0.08", "--epochs", "2", "--device", "cpu")
    result = run(*named, *few, "--set", "sgd.schedule.warmup_epochs=5")
    assert result.code == 0 and f"warning: {NO_FULL_RATE}" in result.err


@pytest.mark.parametrize("name", recipe_names())
def test_no_bundled_recipe_ends_in_its_warmup(name: str) -> None:
    assert warmup_warning(resolve(name).schedule) is None


@pytest.mark.parametrize("flag", ["--pretrained", "--teacher-pretrained"])
@pytest.mark.parametrize("name", ["resnet20_cifar", "vit_tiny_r_s16_p8_384"])
def test_networks_without_weights_are_told_in_flags(
    run: Run, monkeypatch: pytest.MonkeyPatch, flag: str, name: str
) -> None:
    if not name.endswith("_cifar"):  # as networks of timm's are that nobody has weights for
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: None)
    role = "--teacher" if "teacher" in flag else "--student"
    others = {"--teacher": "resnet14_cifar", "--student": "resnet8_cifar", role: name}
    given = [word for pair in others.items() for word in pair]
    weights = [] if "teacher" in flag else ["--teacher-pretrained"]
    result = run("distill", *given, flag, *weights, *TINY)
    result.assert_refused(2, "no weights come with '", "--weights FILE", "--teacher-weights FILE")
    assert "pretrained_cfg" not in result.err


def test_the_hub_tells_no_tries(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("huggingface_hub.utils._http")

    def fetch(*args: object, **settings: object) -> None:
        logger.warning("Retrying in 1s [Retry 1/5].")
        raise OSError("no connection")

    monkeypatch.setattr(timm, "create_model", fetch)
    with pytest.raises(Exception, match="can't be had: no connection"):
        create_network("resnet18", 10, pretrained=True)
    assert not caplog.records
    logger.warning("said by others")
    assert [record.message for record in caplog.records] == ["said by others"]


def test_datasets_that_are_the_users_have_no_counts(run: Run) -> None:
    listed = {row["name"]: row for row in run("list", "datasets", "--json").json["datasets"]}
    for name in ("folder", "tar", "wds", "hfds"):
        counts = [listed[name][key] for key in ("classes", "train_images", "test_images")]
        assert counts == [None] * 3
        assert re.search(rf"^{name} +- +224 +- +-", run("list", "datasets").out, re.MULTILINE)
    assert listed["digits"]["classes"] == 10 and listed["digits"]["train_images"] > 0
    assert "0 to train" not in run("show", "folder").out


@pytest.mark.parametrize("count", ["0", "-3"])
def test_a_network_has_classes(run: Run, count: str) -> None:
    run("show", "resnet20_cifar", "--num-classes", count).assert_refused(2, f"{count} classes", "1 or more")
