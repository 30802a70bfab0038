"""Tables of the datasets package: columns, splits and classes are found or asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import tutelage
from packing import images_of
from toys import CLASSES, draw_folders
from tutelage.data import Choice, StreamData, dataset_info, load_dataset
from tutelage.errors import TutelageError, UserError

CLASS = datasets.ClassLabel(names=list(CLASSES))


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    return draw_folders(tmp_path / "files")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written into the user's caches, and no progress shown."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    datasets.disable_progress_bars()


def table(
    files: list[tuple[int, Path]], label: Any = CLASS, shown: Callable[[int], Any] = int, **columns: Any
) -> datasets.Dataset:
    """A split with the given files and their classes as ``shown``."""
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": None} for _, path in files],
        "label": [shown(number) for number, _ in files],
        **{name: values for name, (values, _) in columns.items()},
    }
    types = {"image": datasets.Image(), "label": label, **{n: kind for n, (_, kind) in columns.items()}}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(types))


def saved(fruit: Path, to: Path, test: str = "test", **options: Any) -> Path:
    """Both parts, saved to disk."""
    parts = {
        "train": table(images_of(fruit / "train"), **options),
        test: table(images_of(fruit / "val"), **options),
    }
    datasets.DatasetDict(parts).save_to_disk(str(to))
    return to


@pytest.mark.parametrize("workers", [0, 2])
def test_tables_give_the_batches_of_the_files_in_them(fruit: Path, tmp_path: Path, workers: int) -> None:
    folder, rows = saved(fruit, tmp_path / "saved"), {"val_indices": torch.tensor([9, 0])}
    rows["train_indices"] = torch.tensor([3, 8, 1, 14, 5])
    files, tables = (
        StreamData(load_dataset(name, place), "cpu", 32, workers=number, **rows)
        for name, place, number in (("folder", fruit, 0), ("hfds", folder, workers))
    )
    assert tables.info.class_names == CLASSES and tables.info.test_count == 6
    twice = load_dataset("hfds", folder).train.part(torch.tensor([9, 4, 1])).part(torch.tensor([2, 0]))
    assert [twice.open(row).read() for row in range(2)] == [
        images_of(fruit / "train")[row][1].read_bytes() for row in (1, 9)
    ]
    for get in (
        lambda data: data.train_batches(2, 1, 2),
        lambda data: data.eval_batches("val", 4),
        lambda data: data.eval_batches("test", 4),
    ):
        for got, expected in zip(get(tables), get(files), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got[:4], expected[:4], strict=True))


def test_files_of_images_and_parquet_are_read_as_well(fruit: Path, tmp_path: Path) -> None:
    from timm.data.readers.reader_hfds import ReaderHfds

    (fruit / "val").rename(fruit / "test")
    found = load_dataset("hfds", fruit)
    reader = ReaderHfds(str(fruit), split="train")
    assert found.info.class_names == tuple(reader.class_to_idx)
    theirs = [(image.read(), label) for image, label in map(reader.__getitem__, range(len(reader)))]
    ours = [found.train.open(row).read() for row in range(15)]
    assert list(zip(ours, found.train_labels.tolist(), strict=True)) == theirs
    assert "!14 (" in found.train.name(14) and "plum" in found.train.name(14)
    for part in ("train", "test"):
        table(images_of(fruit / part)).to_parquet(str(tmp_path / "parquet" / f"{part}.parquet"))
    assert torch.equal(load_dataset("hfds", tmp_path / "parquet").train_labels, found.train_labels)


def test_columns_are_found_by_type_or_named(fruit: Path, tmp_path: Path) -> None:
    files = images_of(fruit / "train")
    extra = {
        "fine": ([0] * 15, datasets.ClassLabel(names=["all"])),
        "label": ([n % 2 for n in range(15)], datasets.Value("int64")),
    }
    both = table(files).rename_columns({"image": "picture", "label": "coarse"})
    for name, (values, kind) in extra.items():
        both = both.add_column(name, values, feature=kind)
    datasets.DatasetDict({"train": both, "validation": both}).save_to_disk(str(tmp_path / "saved"))
    folder = tmp_path / "saved"
    with pytest.raises(UserError, match=r"several columns that could be the label .*data\.label_column"):
        load_dataset("hfds", folder)
    found = load_dataset("hfds", folder, choice=Choice(label="coarse"))
    assert found.info.class_names == CLASSES and found.info.test_count == 15
    assert load_dataset("hfds", folder, choice=Choice(label="label")).info.class_names == ("0", "1")
    with pytest.raises(UserError, match=r"no column 'image', only picture, .*data\.image_column"):
        load_dataset("hfds", folder, choice=Choice(image="image"))
    with pytest.raises(UserError, match="'fine' of hfds holds no images"):
        load_dataset("hfds", folder, choice=Choice(image="fine"))
    with pytest.raises(UserError, match=r"no labelled split .* called dev, only train, validation"):
        load_dataset("hfds", folder, choice=Choice(label="coarse", test="dev"))


def test_one_high_class_number_takes_no_memory(fruit: Path, tmp_path: Path) -> None:
    for kind in ("int64", "uint64"):
        words = {"label": datasets.Value(kind), "shown": lambda number: 10**9 * number}
        folder = saved(fruit, tmp_path / kind, **words)
        with pytest.raises(UserError, match="training image of class 2000000000, but 15 training images"):
            load_dataset("hfds", folder)


def test_words_are_classes_in_alphabetical_order(fruit: Path, tmp_path: Path) -> None:
    words = {"label": datasets.Value("string"), "shown": lambda number: ("pip", "drupe", "berry")[number]}
    folder = saved(fruit, tmp_path / "saved", **words)
    found = load_dataset("hfds", folder)
    assert found.info.class_names == ("berry", "drupe", "pip")
    assert found.train_labels.tolist() == [2] * 5 + [1] * 5 + [0] * 5
    parts = datasets.load_from_disk(str(folder))
    parts["test"] = table(images_of(fruit / "val"), words["label"], lambda number: "nut")
    parts.save_to_disk(str(tmp_path / "other"))
    with pytest.raises(UserError, match="test images of class 'nut'"):
        load_dataset("hfds", tmp_path / "other")


def test_a_test_split_without_labels_is_passed_over(fruit: Path, tmp_path: Path) -> None:
    val = images_of(fruit / "val")
    parts = {
        "train": table(images_of(fruit / "train")),
        "test": table(val[:2], shown=lambda number: -1),
        "validation": table(val),
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert load_dataset("hfds", tmp_path / "saved").info.test_count == 6
    with pytest.raises(UserError, match="test images of class -1 "):
        load_dataset("hfds", tmp_path / "saved", choice=Choice(test="test"))


def test_classes_that_do_not_fit_are_refused(fruit: Path, tmp_path: Path) -> None:
    train, val = images_of(fruit / "train"), images_of(fruit / "val")
    other = datasets.ClassLabel(names=["pear", "apple", "plum"])
    cases = {
        "differ between 'train' and 'test'": (table(train), table(val, other)),
        r"class 2 \('plum'\) has no training images": (table(train[:10]), table(val)),
        "test images of class 2": (
            table(train[:10], datasets.Value("int32")),
            table(val, datasets.Value("int32")),
        ),
        "holds no classes": (
            table(train, datasets.Value("float32"), float),
            table(val, datasets.Value("float32"), float),
        ),
        "some rows have none": (
            table(train, shown=lambda number: None if number == 2 else number),
            table(val),
        ),
    }
    for number, (sentence, (first, second)) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        datasets.DatasetDict({"train": first, "test": second}).save_to_disk(str(folder))
        with pytest.raises(UserError, match=sentence):
            load_dataset("hfds", folder)


def test_a_damaged_image_is_named_by_table_and_row(fruit: Path, tmp_path: Path) -> None:
    (fruit / "train" / "pear" / "1.png").write_bytes(b"no image")
    data = StreamData(load_dataset("hfds", saved(fruit, tmp_path / "saved")), "cpu", 32)
    assert sum(len(batch.targets) for batch in data.train_batches(0, 0, 4)) == 14
    assert data.unreadable == {"hfds/train!6"}


def test_what_is_wrong_with_a_folder_is_told(fruit: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        load_dataset("hfds", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="datasets package can't read"):
        load_dataset("hfds", tmp_path / "empty")
    table(images_of(fruit / "train")).save_to_disk(str(tmp_path / "single"))
    with pytest.raises(UserError, match="one table without splits"):
        load_dataset("hfds", tmp_path / "single")
    table(images_of(fruit / "train")).to_parquet(str(tmp_path / "alone" / "train.parquet"))
    with pytest.raises(UserError, match="no labelled split of test images"):
        load_dataset("hfds", tmp_path / "alone")


def test_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package 'datasets'.*tutelage\[hub\]"):
        load_dataset("hfds", tmp_path)


def test_names_of_the_hub_carry_configuration_and_revision(
    fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    parts = datasets.load_from_disk(str(saved(fruit, tmp_path / "saved")))

    def load(*names: Any, **options: Any) -> Any:
        asked.append((*names, options["revision"], options["cache_dir"], datasets.config.HF_HUB_OFFLINE))
        return parts

    monkeypatch.setattr(datasets, "load_dataset", load)
    before = datasets.config.HF_HUB_OFFLINE
    found = load_dataset("hfds/me/fruit:small@v2", tmp_path / "data")
    load_dataset("hfds/fruit", tmp_path / "data", download=True)
    assert asked == [
        ("me/fruit", "small", "v2", str(tmp_path / "data" / "hfds@v2"), True),
        ("fruit", None, None, str(tmp_path / "data" / "hfds"), before),
    ]
    assert before == datasets.config.HF_HUB_OFFLINE
    assert found.info.name == dataset_info("hfds/me/fruit:small@v2").name == "hfds/me/fruit:small@v2"
    with pytest.raises(UserError, match="names no dataset of the hub"):
        load_dataset("hfds/:small", tmp_path)

    def fail(*names: Any, **options: Any) -> None:
        raise ConnectionError("nobody answers\nat all")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        TutelageError, match=r"hfds/fruit can't be fetched \(ConnectionError: nobody answers\)"
    ):
        load_dataset("hfds/fruit", tmp_path, download=True)


def test_without_download_only_the_folder_is_looked_into(fruit: Path, tmp_path: Path) -> None:
    """What the package keeps of a dataset of the hub is what it keeps of a folder, under another name."""
    for part in ("train", "val"):
        table(images_of(fruit / part)).to_parquet(str(tmp_path / "fruit" / f"{part}.parquet"))
    kept = tmp_path / "data" / "hfds"
    datasets.load_dataset(str(tmp_path / "fruit"), cache_dir=str(kept))
    (kept / "fruit").rename(kept / "me___fruit")
    assert load_dataset("hfds/me/fruit", tmp_path / "data").info.train_count == 15
    with pytest.raises(UserError, match=r"hfds/me/nuts is not in .*data/hfds .*add --download"):
        load_dataset("hfds/me/nuts", tmp_path / "data")


def test_a_network_is_trained_on_tables(fruit: Path, tmp_path: Path) -> None:
    settings = ["data.image_size=32", "data.batch_size=4", "schedule.epochs=1", "runtime.tensorboard=false"]
    folder = saved(fruit, tmp_path / "saved")
    run = tutelage.train(
        model="resnet8_cifar",
        data="hfds",
        data_dir=folder,
        out=tmp_path / "run",
        settings=[*settings, "runtime.workers=0", "data.label_column=label"],
    )
    assert run["protocol"]["dataset"] == "hfds" and run["summary"]["last"]["test"]["images"] == 6
