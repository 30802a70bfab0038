"""WebDataset shards give what the same images give as files, whatever order they are read in."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from packing import describe, images_of, merge, pack, sample, write_shards
from toys import CLASSES, draw_folders
from tutelage.data import Choice, StreamData, load_dataset
from tutelage.data import packed as packed_module
from tutelage.data.batch import Batch
from tutelage.errors import TutelageError, UserError
from tutelage.files import cache_folder


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    return draw_folders(tmp_path / "files")


@pytest.fixture
def shards(fruit: Path, tmp_path: Path) -> Path:
    return write_shards(fruit, tmp_path / "shards")


def stream(name: str, folder: Path, choice: Choice | None = None, **options: object) -> StreamData:
    return StreamData(load_dataset(name, folder, choice=choice), "cpu", image_size=32, **options)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for got, expected in zip(ours, theirs, strict=True):
        for a, b in zip(got[:4], expected[:4], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_the_batches_of_the_files_in_them(fruit: Path, shards: Path, workers: int) -> None:
    files, packed = stream("folder", fruit), stream("wds", shards, workers=workers)
    assert (packed.train_size, packed.size("test"), packed.info.num_classes) == (15, 6, 3)
    assert packed.info.class_names == ("0", "1", "2")
    for epoch in (0, 3):
        assert_same(list(packed.train_batches(epoch, 5, 4)), list(files.train_batches(epoch, 5, 4)))
    assert_same(list(packed.train_batches(3, 5, 4, 2)), list(files.train_batches(3, 5, 4))[2:])
    assert_same(list(packed.eval_batches("test", 4)), list(files.eval_batches("test", 4)))
    batch = next(files.train_batches(1, 5, 6))
    assert_same([packed.take(batch.index, batch.view)], [batch])


def test_few_shot_and_validation_rows_are_those_of_the_files(fruit: Path, shards: Path) -> None:
    rows = {"train_indices": torch.tensor([14, 3, 7, 1]), "val_indices": torch.tensor([0, 9])}
    files, packed = stream("folder", fruit, **rows), stream("wds", shards, **rows)
    assert packed.train_labels.tolist() == [2, 0, 1, 0]
    assert_same(list(packed.train_batches(0, 0, 3)), list(files.train_batches(0, 0, 3)))
    assert_same(list(packed.eval_batches("val", 3)), list(files.eval_batches("val", 3)))


def test_they_are_those_of_timms_reader(shards: Path) -> None:
    from timm.data.readers.reader_wds import ReaderWds

    describe(shards)
    for part, source in (("train", "train"), ("val", "test")):
        theirs = [(image.tobytes(), label) for image, label in ReaderWds(str(shards), split=part)]
        ours = getattr(load_dataset("wds", shards), source)
        from PIL import Image

        decoded = [Image.open(ours.open(row)).convert("RGB").tobytes() for row in range(len(ours))]
        assert list(zip(decoded, ours.labels.tolist(), strict=True)) == theirs


def test_a_field_of_the_json_tells_the_class(fruit: Path, tmp_path: Path) -> None:
    shards = write_shards(fruit, tmp_path / "shards", field="fruit")
    with pytest.raises(UserError, match=r"no class number in its field 'label'.*data\.label_column"):
        load_dataset("wds", shards)
    found = load_dataset("wds", shards, choice=Choice(label="fruit"))
    assert found.train_labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    both = {"x.cls": b"1", **sample("x", 2, fruit / "val" / "plum" / "1.png", "fruit")}
    pack(shards / "fruit-val-000.tar", both)
    assert load_dataset("wds", shards, choice=Choice(label="fruit")).test.labels.tolist()[0] == 2
    describe(shards, alt_label="fruit")
    assert torch.equal(load_dataset("wds", shards).train_labels, found.train_labels)


def test_negative_labels_leave_a_sample_out(fruit: Path, tmp_path: Path) -> None:
    shards = write_shards(fruit, tmp_path / "shards", size=30)
    extra = sample("x", -1, fruit / "train" / "pear" / "0.JPEG")
    pack(shards / "fruit-train-001.tar", extra)
    describe(shards)
    assert len(load_dataset("wds", shards).train) == 15


def test_names_of_the_classes_stand_in_a_list(shards: Path) -> None:
    (shards / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    assert load_dataset("wds", shards).info.class_names == CLASSES
    (shards / "classnames.txt").write_text("\n".join([*CLASSES, "quince"]))
    with pytest.raises(UserError, match=r"class 3 \('quince'\) has no training images .*1 of 4"):
        load_dataset("wds", shards)
    (shards / "classnames.txt").write_text("apple\npear")
    with pytest.raises(UserError, match=r"training images of class 2 .*classes are 0 to 1"):
        load_dataset("wds", shards)


def test_splits_are_found_by_folder_word_pattern_or_description(shards: Path) -> None:
    by_word = load_dataset("wds", shards)
    by_pattern = load_dataset("wds", shards, choice=Choice(train="*-train-00[0-2].tar", test="*val*"))
    assert (len(by_pattern.train), len(by_pattern.test)) == (12, 6)
    describe(shards)
    for shard in shards.glob("*train*.tar"):
        shard.rename(shards / shard.name.replace("train", "learn"))
    with pytest.raises(UserError, match=r"fruit-train-000\.tar.*complete the folder"):
        load_dataset("wds", shards)
    (shards / "_info.json").unlink()
    with pytest.raises(UserError, match=r"no archives of training images.*data\.train_split"):
        load_dataset("wds", shards)
    assert len(load_dataset("wds", shards, choice=Choice(train="learn")).train) == 15
    (shards / "train").mkdir()
    for shard in shards.glob("*learn*.tar"):
        shard.rename(shards / "train" / shard.name)
    assert torch.equal(load_dataset("wds", shards).train_labels, by_word.train_labels)


def test_what_was_found_is_kept_until_a_shard_changes(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset("wds", shards)
    kept = sorted((cache_folder() / "indices").iterdir())
    assert len(kept) == 2
    with monkeypatch.context() as patched:
        patched.setattr(packed_module, "members", None)
        patched.setattr("tutelage.data.shards.members", None)
        again = load_dataset("wds", shards)
    assert torch.equal(again.train_labels, first.train_labels)
    for path in kept:
        path.write_bytes(b"rubbish")
    assert torch.equal(load_dataset("wds", shards).train_labels, first.train_labels)
    shard = shards / "fruit-train-003.tar"
    os.utime(shard, ns=(1, 1))
    load_dataset("wds", shards)
    assert len(list((cache_folder() / "indices").iterdir())) == 3


def test_no_place_for_the_index_is_no_failure(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shards / "file").write_text("")
    monkeypatch.setenv("TUTELAGE_CACHE", str(shards / "file"))
    assert len(load_dataset("wds", shards).train) == 15


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("sprung",)


def test_pickles_are_never_opened(fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shards = write_shards(fruit, tmp_path / "shards", size=30)
    trap = pickle.dumps(Trap())
    for kind in ("pyd", "pth"):
        without = {
            name: content
            for name, content in sample("x", 0, fruit / "train" / "apple" / "0.JPEG").items()
            if not name.endswith((".cls", ".pth"))
        }
        pack(shards / "fruit-train-001.tar", {**without, f"x.{kind}": trap})
        with pytest.raises(
            UserError, match=rf"sample .*!x has no label .*{kind}.* hold programs and is never"
        ):
            load_dataset("wds", shards)
        pack(shards / "fruit-train-001.tar", {f"x.{kind}": trap, "x.cls": b"0"})
        with pytest.raises(
            UserError, match=rf"sample .*!x has no image .*{kind}.* hold programs and is never"
        ):
            load_dataset("wds", shards)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"seven", b"1.5", b"9" * 12])
def test_a_label_that_is_no_number_is_refused(shards: Path, fruit: Path, content: bytes) -> None:
    files = sample("x", 0, fruit / "train" / "apple" / "0.JPEG")
    pack(shards / "fruit-train-004.tar", {**files, "x.cls": content})
    with pytest.raises(UserError, match=r"fruit-train-004\.tar!x is no class number"):
        load_dataset("wds", shards)


def test_damaged_shards_are_refused_in_a_sentence(shards: Path, fruit: Path) -> None:
    shard = shards / "fruit-train-001.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        header = tar.getmembers()[4].offset
    for damaged in (
        whole[: header + 700],
        whole[:header],
        whole[:header] + b"x" * 4096,
        b"",
        b"no tar" * 200,
    ):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=r"fruit-train-001\.tar is no whole, uncompressed tar file"):
            load_dataset("wds", shards)
    shard.write_bytes(gzip.compress(whole))
    with pytest.raises(UserError, match="decompress it"):
        load_dataset("wds", shards)
    info = describe_with(shards, whole, shard)
    shard.write_bytes(whole)
    load_dataset("wds", shards)
    pack(shard, merge([sample("x", 0, path) for _, path in images_of(fruit / "train")[:1]]))
    with pytest.raises(UserError, match=r"holds 1 samples, but .*_info\.json says 4"):
        load_dataset("wds", shards)
    (shards / "_info.json").write_text(json.dumps({**info, "splits": {"train": {}}}))
    with pytest.raises(UserError, match=r"_info\.json doesn't say which shards"):
        load_dataset("wds", shards)


def describe_with(shards: Path, whole: bytes, shard: Path) -> dict[str, object]:
    shard.write_bytes(whole)
    return describe(shards)


def test_classes_of_both_parts_must_agree(shards: Path, fruit: Path) -> None:
    pack(shards / "fruit-val-009.tar", sample("x", 3, fruit / "train" / "apple" / "0.JPEG"))
    with pytest.raises(UserError, match=r"test images of class 3 .*classes are 0 to 2"):
        load_dataset("wds", shards)
    pack(shards / "fruit-train-009.tar", sample("x", 4, fruit / "train" / "apple" / "0.JPEG"))
    with pytest.raises(UserError, match=r"class 3 \('3'\) has no training images"):
        load_dataset("wds", shards)
    for shard in shards.glob("*val*.tar"):
        shard.unlink()
    pack(shards / "fruit-val-000.tar", {})
    (shards / "fruit-train-009.tar").unlink()
    with pytest.raises(UserError, match="no test images"):
        load_dataset("wds", shards)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 200_000, "RecursionError"),
        (b'{"label": ' + b"9" * 20 + b"}", "a number of 20 digits"),
        (b'{"label": "' + b"9" * 20 + b'"}', "a number of 20 digits"),
        (b'{"label": 1e999}', "ValueError"),
        (b'{"label": [1]}', "TypeError"),
        (b'{"\xff"', "UnicodeDecodeError"),
        (b"7", "TypeError"),
    ],
)
def test_a_json_without_a_class_number_is_refused(
    shards: Path, fruit: Path, content: bytes, why: str
) -> None:
    image = (fruit / "train" / "apple" / "0.JPEG").read_bytes()
    pack(shards / "fruit-train-009.tar", {"x.jpg": image, "x.json": content})
    with pytest.raises(UserError, match=rf"json of sample .*!x has no class number .*{why}"):
        load_dataset("wds", shards)


def test_a_damaged_description_is_refused(shards: Path) -> None:
    info: dict[str, Any] = describe(shards)
    info["splits"]["train"]["shard_lengths"] = [4, 4]
    (shards / "_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"_info\.json .*'train' has 2 shard_lengths for 4 filenames"):
        load_dataset("wds", shards)
    (shards / "_info.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"_info\.json doesn't say .*RecursionError"):
        load_dataset("wds", shards)


def test_class_names_that_are_no_text_are_refused(shards: Path) -> None:
    (shards / "classnames.txt").write_bytes(b"apfel\nbirne\npfl\xfcme\n")
    with pytest.raises(UserError, match=r"classnames\.txt is no text in UTF-8 \(invalid start byte\)"):
        load_dataset("wds", shards)


@pytest.mark.parametrize("pattern", ["/data/fruit-*.tar", "**train.tar"])
def test_patterns_that_are_none_are_refused(shards: Path, pattern: str) -> None:
    """Python 3.13 takes the second one for a pattern, which nothing matches."""
    with pytest.raises(UserError, match=r"data\.train_split"):
        load_dataset("wds", shards, choice=Choice(train=pattern))
    with pytest.raises(UserError, match=r"data\.test_split"):
        load_dataset("wds", shards, choice=Choice(test=pattern))


def test_one_high_class_number_takes_no_memory(shards: Path, fruit: Path) -> None:
    files = sample("x", 999_999_999, fruit / "train" / "apple" / "0.JPEG")
    pack(shards / "fruit-train-009.tar", files)
    with pytest.raises(UserError, match=r"image of class 999999999, but 16 training images in all"):
        load_dataset("wds", shards)


def test_what_is_wrong_with_the_request_is_told(shards: Path) -> None:
    with pytest.raises(UserError, match="needs a folder"):
        load_dataset("wds")
    with pytest.raises(UserError, match="can't be downloaded"):
        load_dataset("wds", shards, download=True)
    with pytest.raises(UserError, match=r"'shapes' has no columns or splits .* are for .*wds"):
        load_dataset("shapes", choice=Choice(label="colour"))
    with pytest.raises(UserError, match="no dataset 'wds/shards'"):
        load_dataset("wds/shards", shards)


def test_a_damaged_image_is_named_with_its_shard(shards: Path, fruit: Path) -> None:
    path = fruit / "train" / "plum" / "0.JPEG"
    broken = {**sample("x", 2, path), "x.jpg": path.read_bytes()[:200]}
    pack(shards / "fruit-train-004.tar", broken)
    data = stream("wds", shards, workers=2)
    assert sum(len(batch.targets) for batch in data.train_batches(0, 0, 4)) == 15
    assert data.unreadable == {f"{shards / 'fruit-train-004.tar'}!x.jpg"}
    val = shards / "fruit-val-000.tar"
    content = bytearray(val.read_bytes())
    content[512:2000] = bytes(1488)
    val.write_bytes(content)
    with pytest.raises(TutelageError, match=r"2 of 22 image files can't be read"):
        list(data.eval_batches("test", 8))


def test_a_network_is_trained_on_shards(shards: Path, tmp_path: Path) -> None:
    settings = ["data.image_size=32", "data.batch_size=4", "schedule.epochs=1", "runtime.tensorboard=false"]
    settings += ["runtime.workers=1", "data.few_ratio=0.6", "data.test_split=fruit-val-*"]
    run = tutelage.train(
        model="resnet8_cifar", data="wds", data_dir=shards, out=tmp_path / "run", settings=settings
    )
    assert run["protocol"]["train_images"] == 9 and run["summary"]["last"]["test"]["images"] == 6
