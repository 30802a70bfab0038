"""The table of the teacher's answers: the same numbers as asking, asked once, kept whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

import tutelage
from killing import Killed, killed_after, same
from toys import BRIEF_RUN, saved_network, toy_data, toy_network
from tutelage.data import CropFlip, ResidentData, make_shapes
from tutelage.errors import TutelageError, UserError
from tutelage.methods import Method, create_method
from tutelage.methods.base import LOGITS
from tutelage.models.network import Ask, Network
from tutelage.recipes import validate
from tutelage.runs.record import RunFolder
from tutelage.training import answers as answers_module
from tutelage.training.answer_files import AnswerFiles
from tutelage.training.answers import Answers, Pass, cannot_keep, filled_share, known_share, taught_batches
from tutelage.training.progress import Reporter

IMAGES = 70


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "answers"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_network(tmp_path_factory.mktemp("teacher"), "resnet14_cifar")


def run(out: Path, teacher: Path, answers: str, *more: str, method: str = "kd") -> list[int | None]:
    """Distil; how many images the teacher was given in each epoch."""
    tutelage.distill(
        student="resnet8_cifar",
        teacher="resnet14_cifar",
        teacher_weights=teacher,
        method=method,
        data="shapes",
        out=out,
        settings=[*BRIEF_RUN, f"runtime.teacher_answers={answers}", *more],
    )
    return [line.get("teacher_asked") for line in RunFolder(out).metrics()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student.safetensors")


def toy_pass(ask: Ask = LOGITS, data: ResidentData | None = None) -> tuple[Pass, ResidentData]:
    torch.manual_seed(0)
    data = data or toy_data()
    return Pass(Network(toy_network("resnet8_cifar", data.info.num_classes), ask, "frozen"), None), data


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("method", ["kd", "rkd", "crd"])
def test_a_run_learns_the_same_to_the_bit(method, amp, tmp_path, teacher):
    own = (f"runtime.amp={amp}", *(("method.negatives=32",) if method == "crd" else ()))
    assert run(tmp_path / "asking", teacher, "off", *own, method=method) == [None] * 3
    asked = run(tmp_path / "looking", teacher, "memory", *own, method=method)
    assert same(weights(tmp_path / "asking"), weights(tmp_path / "looking"))
    assert asked[0] == IMAGES and all(0 < count <= IMAGES for count in asked)


def test_an_answer_is_asked_for_once(tmp_path, teacher):
    assert run(tmp_path / "run", teacher, "memory", "data.augment=false") == [IMAGES, 0, 0]
    run(tmp_path / "asking", teacher, "off", "data.augment=false")
    assert same(weights(tmp_path / "asking"), weights(tmp_path / "run"))


@pytest.mark.parametrize("rows", [5, 8, 64])
def test_each_batch_gets_the_answers_to_its_images(rows):
    asked, data = toy_pass(Ask(pooled=True))
    answers = Answers(asked, data, rows)
    for epoch in range(3):
        for batch, taught in answers.batches(epoch, 0, 8, start_step=epoch):
            expected = asked(batch.images)
            torch.testing.assert_close(taught.logits, expected["logits"], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(taught.pooled, expected["pooled"], rtol=1e-5, atol=1e-5)
    handed_out = 3 * data.train_size - 8 - 16  # but for those before the first steps
    assert 0 < answers.asked <= handed_out


def test_an_answer_does_not_depend_on_its_neighbours():
    flipped_or_not = CropFlip(32, padding=0)
    asked, data = toy_pass(data=ResidentData(make_shapes(4, 2), "cpu", augment=flipped_or_not))
    sizes: set[int] = set()
    asked.register_forward_pre_hook(lambda module, images: sizes.add(len(images[0])))
    one, other = (Answers(asked, data, 8) for _ in range(2))
    for _ in other.batches(7, 0, 8):  # so that fewer are missing below, in other batches
        pass
    pairs = zip(one.batches(1, 0, 8), other.batches(1, 0, 8), strict=True)
    assert all(torch.equal(ours.logits, theirs.logits) for (_, ours), (_, theirs) in pairs)
    assert data.train_size < other.asked < 2 * data.train_size
    assert sizes == {8}, "other kernels may compute a batch of another size"


def test_repeated_images_are_asked_for_once():
    asked, data = toy_pass(data=ResidentData(make_shapes(train_per_class=30, test_per_class=2), "cpu"))
    data.repeats = 3
    answers = Answers(asked, data, 8)
    shown = torch.cat([batch.index * data.view_count + batch.view for batch, _ in answers.batches(0, 0, 8)])
    assert answers.asked == len(shown.unique())


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_the_table_has_the_type_the_teacher_computes_in(amp):
    asked, data = toy_pass()
    asked.amp = amp
    answers = Answers(asked, data, 8)
    batch, taught = next(answers.batches(0, 0, 8))
    assert taught.logits.dtype is torch.float32
    assert torch.equal(taught.logits, asked(batch.images)["logits"].float())
    assert answers._tables["logits"].dtype is (amp or torch.float32)


def test_killed_and_resumed(tmp_path, teacher):
    run(tmp_path / "whole", teacher, "memory", "runtime.checkpoint_steps=2")
    with killed_after(8), pytest.raises(Killed):
        run(tmp_path / "killed", teacher, "memory", "runtime.checkpoint_steps=2")
    tutelage.resume(tmp_path / "killed")
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


# -- files ------------------------------------------------------------------------------------------


def test_a_later_run_need_not_ask(tmp_path, teacher, cache):
    first = run(tmp_path / "first", teacher, "disk")
    assert run(tmp_path / "second", teacher, "disk", "method.temperature=2") == [0, 0, 0]
    run(tmp_path / "asking", teacher, "off", "method.temperature=2")
    assert same(weights(tmp_path / "second"), weights(tmp_path / "asking"))
    (folder,) = cache.iterdir()
    written = [load_file(path) for path in folder.glob("*.safetensors")]
    assert sorted(len(part["rows"]) for part in written) == sorted(first)
    assert all(set(part) == {"rows", "logits"} for part in written)


def test_another_seed_asks_for_what_is_missing(tmp_path, teacher):
    run(tmp_path / "first", teacher, "disk")
    asked = run(tmp_path / "second", teacher, "disk", "seed=1")
    assert all(0 < count < IMAGES for count in asked)
    run(tmp_path / "asking", teacher, "off", "seed=1")
    assert same(weights(tmp_path / "second"), weights(tmp_path / "asking"))


@pytest.mark.parametrize(
    "settings",
    [
        ("data.mean=[0.5,0.5,0.5]", "data.std=[0.3,0.3,0.3]"),
        ("data.few_ratio=0.14",),
        ("data.batch_size=8",),
        ("runtime.amp=bf16",),
    ],
)
def test_answers_to_other_questions_are_not_taken(settings, tmp_path, teacher, cache):
    run(tmp_path / "first", teacher, "disk", "schedule.epochs=1")
    assert run(tmp_path / "second", teacher, "disk", "schedule.epochs=1", *settings)[0] > 0
    assert len(list(cache.iterdir())) == 2


def test_answers_of_other_weights_are_not_taken(tmp_path, teacher, cache):
    run(tmp_path / "first", teacher, "disk", "schedule.epochs=1")
    other = saved_network(tmp_path, "resnet14_cifar", seed=1)
    assert run(tmp_path / "second", other, "disk", "schedule.epochs=1") == [IMAGES]
    assert len(list(cache.iterdir())) == 2


def spoilt(path: Path, how: str) -> None:
    """Spoil one of the files."""
    state = load_file(path)
    if how in ("cut short", "a bit"):
        content = bytearray(path.read_bytes())
        content[-50] ^= 1
        path.write_bytes(content[:-100] if how == "cut short" else content)
        return
    if how == "no number":
        state["logits"][3, 2] = float("nan")
    elif how == "outside":
        state["rows"][0] = 10**9
    elif how == "negative":
        state["rows"][0] = -1
    elif how == "other width":
        state["logits"] = state["logits"][:, 1:].clone()
    elif how == "whole numbers":
        state["logits"] = state["logits"].long()
    elif how == "fewer":
        state["logits"] = state["logits"][:-1].clone()
    elif how == "nameless":
        state["scores"] = state.pop("logits")
    elif how == "without rows":
        del state["rows"]
    content = save(state)
    path.unlink()
    (path.parent / f"{hashlib.sha256(content).hexdigest()[:24]}.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    "how",
    [
        *("cut short", "a bit", "no number", "outside", "negative", "other width", "whole numbers", "fewer"),
        *("nameless", "without rows"),
    ],
)
def test_a_spoilt_file_is_passed_over(how, tmp_path, teacher, cache):
    run(tmp_path / "first", teacher, "disk")
    paths = sorted(cache.glob("*/*.safetensors"))
    assert len(paths) == 3
    lost = len(load_file(paths[1])["rows"])
    spoilt(paths[1], how)
    assert sum(run(tmp_path / "second", teacher, "disk")) == lost
    assert same(weights(tmp_path / "first"), weights(tmp_path / "second"))


def test_a_full_disk_costs_a_warning(tmp_path, teacher, monkeypatch):
    def full(self: AnswerFiles, numbers: Any, answers: Any) -> Path:
        raise TutelageError("can't write answers: no space left on device")

    monkeypatch.setattr(AnswerFiles, "write", full)
    said: list[str] = []
    monkeypatch.setattr(Reporter, "warn", lambda self, text: said.append(text))
    run(tmp_path / "run", teacher, "disk")
    assert RunFolder(tmp_path / "run").facts()["status"] == "finished"
    assert said == [
        "can't write answers: no space left on device; going on without keeping the teacher's answers for "
        "later runs"
    ]


# -- when there is a table --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "more", "why"),
    [
        ("at", (), "method 'at' asks the teacher for more than scores and pooled features"),
        ("packd", (), "method 'packd' makes images of its own"),
        ("kd", ("data.mixup=0.5",), "images are mixed"),
        ("kd", ("runtime.cache_gib=0.0001",), "views take 0.000"),
        ("kd", ("data.erase=0.5",), "more than runtime.cache_gib allows (4)"),
    ],
)
def test_a_table_that_there_cannot_be_is_refused(method, more, why, tmp_path, teacher):
    with pytest.raises(UserError, match="no table of the teacher's answers") as refused:
        run(tmp_path / "run", teacher, "memory", *more, method=method)
    assert why in str(refused.value)
    assert not (tmp_path / "run").exists()
    if method != "packd":
        assert run(tmp_path / "run", teacher, "auto", *more, method=method) == [None] * 3


def test_training_without_a_teacher_has_nothing_to_keep(tmp_path):
    with pytest.raises(UserError, match="method 'none' has no teacher"):
        tutelage.train(
            model="resnet8_cifar",
            data="shapes",
            out=tmp_path / "run",
            settings=[*BRIEF_RUN, "runtime.teacher_answers=memory"],
        )


def test_a_method_that_changes_images_has_no_table():
    class Noisy(Method):
        def views(self, batch: Any, generator: torch.Generator) -> Any:
            return batch._replace(images=batch.images + 1)

    asked, data = toy_pass()
    recipe = validate({"student": {"name": "resnet8_cifar"}, "task": "train"})
    assert "makes images of its own" in str(
        cannot_keep(recipe, asked.teacher, Noisy(Method.Config()), data, None)
    )
    assert cannot_keep(recipe, asked.teacher, create_method("kd"), data, None) is None


def test_auto_keeps_a_table_where_answers_are_found_again(tmp_path, teacher):
    assert run(tmp_path / "few", teacher, "auto") == [None] * 3
    assert run(tmp_path / "one view", teacher, "auto", "data.augment=false") == [IMAGES, 0, 0]


@pytest.mark.parametrize(("views", "epochs"), [(1, 1), (1, 4), (162, 1), (162, 240), (18, 30)])
def test_the_share_of_known_answers(views, epochs):
    drawn = torch.randint(views, (4000, epochs), generator=torch.Generator().manual_seed(0))
    different = sum(len(row.unique()) for row in drawn)
    assert filled_share(views, epochs) == pytest.approx(different / (4000 * views), abs=0.01)
    assert known_share(views, epochs) == pytest.approx(1 - different / drawn.numel(), abs=0.01)


def test_where_the_answers_come_from_is_not_part_of_the_recipe():
    base = {"student": {"name": "resnet8_cifar"}, "task": "train"}
    kept = validate({**base, "runtime": {"teacher_answers": "disk", "cache_gib": 1}})
    assert kept.hash() == validate(base).hash()
    assert kept.hash() != validate({**base, "runtime": {"amp": "bf16"}}).hash()


# -- compiled ---------------------------------------------------------------------------------------


class Strict(Reporter):
    def warn(self, text: str) -> None:
        raise AssertionError(text)


def test_a_compiled_teacher_is_used_where_it_agrees(monkeypatch):
    asked, data = toy_pass()
    calls = []

    def compiled(module: Any, **options: Any) -> Any:
        assert options["fullgraph"]
        return lambda images: calls.append(len(images)) or module(images)

    monkeypatch.setattr(torch, "compile", compiled)
    answers = Answers(asked, data, 8, compiled=True, reporter=Strict(quiet=True))
    list(answers.batches(0, 0, 8))
    assert calls == [8] * (1 + data.steps_per_epoch(8))


@pytest.mark.parametrize("how", ["wrong", "broken"])
def test_a_compiled_teacher_that_errs_is_not_used(how, monkeypatch):
    asked, data = toy_pass()

    def compiled(module: Any, **options: Any) -> Any:
        def call(images: torch.Tensor) -> Any:
            if how == "broken":
                raise RuntimeError("no kernel")
            return {"logits": module(images)["logits"] * 1.01}

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    said: list[str] = []
    monkeypatch.setattr(Reporter, "warn", lambda self, text: said.append(text))
    answers = Answers(asked, data, 8, compiled=True)
    for batch, taught in answers.batches(0, 0, 8):
        torch.testing.assert_close(taught.logits, asked(batch.images)["logits"], rtol=1e-5, atol=1e-5)
    expected = {"wrong": "compiled answers differ from exact ones by 0.01", "broken": "no kernel"}[how]
    assert len(said) == 1 and expected in said[0] and "without compiling the teacher" in said[0]


def test_a_pass_compiles_whole():
    asked, data = toy_pass(Ask(pooled=True))
    images = next(data.train_batches(0, 0, 8)).images
    compiled = torch.compile(asked, backend="aot_eager", fullgraph=True, dynamic=False)
    for name, values in asked(images).items():
        torch.testing.assert_close(compiled(images)[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_run_with_a_table_learns_what_one_without_learns(tmp_path, teacher):
    """With Inductor, where other kernels round differently."""
    for answers in ("off", "memory"):
        run(tmp_path / answers, teacher, answers, "runtime.compile=on")
        assert RunFolder(tmp_path / answers).facts()["compiled"]
    losses = [
        [line["train"]["loss"] for line in RunFolder(tmp_path / a).metrics()] for a in ("off", "memory")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_without_a_table_batches_come_as_they_are():
    data = toy_data()
    plain = list(data.train_batches(1, 0, 8, 2))
    taught = list(taught_batches(data, None, 1, 0, 8, 2))
    assert [answer for _, answer in taught] == [None] * len(plain)
    assert all(torch.equal(a.images, b.images) for (a, _), b in zip(taught, plain, strict=True))


def test_the_facts_beside_the_files_say_what_was_asked(tmp_path, teacher, cache):
    run(tmp_path / "run", teacher, "disk", "schedule.epochs=1")
    (path,) = cache.glob("*/facts.json")
    facts = json.loads(path.read_text(encoding="utf-8"))
    assert facts["network"][0] == "resnet14_cifar" and facts["answers"] == {"logits": 10}
    assert facts["data"]["views"].startswith("CropFlip(") and facts["batch"] == 16
    assert answers_module.fields(Ask(pooled=True)) == ("logits", "pooled")
