"""Image folders inside tar files give what the unpacked folders give."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from packing import add, images_of, pack
from toys import CLASSES, draw_folders, draw_image
from tutelage.data import StreamData, load_dataset
from tutelage.errors import UserError


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    return draw_folders(tmp_path / "files")


def as_one(folder: Path, to: Path, prefix: str = "") -> Path:
    """Each part in one archive, the last class first."""
    for part in ("train", "val"):
        files = {
            f"{prefix}{path.parent.name}/{path.name}": path.read_bytes()
            for _, path in reversed(images_of(folder / part))
        }
        pack(to / f"{part}.tar", {"README.txt": b"fruit", f"{prefix}apple/._0.png": b"", **files})
    return to


def by_class(folder: Path, part: str) -> dict[str, dict[str, bytes]]:
    """The images of each class by name."""
    return {
        name: {path.name: path.read_bytes() for path in (folder / part / name).iterdir()} for name in CLASSES
    }


def as_classes(folder: Path, to: Path) -> Path:
    """An archive for each class and part."""
    for part in ("train", "val"):
        for name, files in by_class(folder, part).items():
            pack(to / part / f"{name}.tar", files)
    return to


def as_official(folder: Path, to: Path) -> Path:
    """As ImageNet comes: an archive of archives, a flat one, and a list."""
    to.mkdir()
    with tarfile.open(to / "ILSVRC2012_img_train.tar", "w") as outer:
        for name, files in by_class(folder, "train").items():
            add(outer, f"{name}.tar", pack(to / "inner.tar", files).read_bytes())
    (to / "inner.tar").unlink()
    flat = {f"{path.parent.name}_{path.name}": (label, path) for label, path in images_of(folder / "val")}
    pack(to / "ILSVRC2012_img_val.tar", {name: path.read_bytes() for name, (_, path) in flat.items()})
    (to / "meta").mkdir()
    (to / "meta" / "val.txt").write_text("\n".join(f"{name} {label}" for name, (label, _) in flat.items()))
    return to


@pytest.mark.parametrize("make", [as_one, lambda a, b: as_one(a, b, "./top/"), as_classes, as_official])
def test_archives_give_the_batches_of_the_folders_in_them(fruit: Path, tmp_path: Path, make) -> None:
    folder = make(fruit, tmp_path / "tars")
    ours, theirs = (
        StreamData(load_dataset(name, place), "cpu", image_size=32)
        for name, place in (("tar", folder), ("folder", fruit))
    )
    assert ours.info.class_names == CLASSES
    assert (ours.info.train_count, ours.info.test_count) == (15, 6)
    for got, expected in (
        (ours.train_batches(1, 2, 4), theirs.train_batches(1, 2, 4)),
        (ours.eval_batches("test", 4), theirs.eval_batches("test", 4)),
    ):
        for a, b in zip(got, expected, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))


@pytest.mark.parametrize("above", ["", "./", "train/", "fruit/", "fruit/train/"])
@pytest.mark.parametrize("count", [1, 3])
def test_any_tree_gives_the_classes_and_rows_of_the_folder(tmp_path: Path, above: str, count: int) -> None:
    """Images deeper inside their class, hidden files, a class called like a split; in one archive or more."""
    folder = tmp_path / "files"
    names = ["apple/2.png", "apple/a/1.png", "apple/a/b/0.png"]
    names += ["pear/ripe/1.png", "pear/9.png", "train/3.png"]
    hidden = ["apple/._2.png", "apple/.trash/2.png", ".git/4.png"]
    for row, name in enumerate([*names, *hidden]):
        for part in ("train", "val"):
            draw_image(folder / part / name, row)
    for part in ("train", "val"):
        inside = above.replace("train", part)
        files = [(inside + name, (folder / part / name).read_bytes()) for name in [*names, *hidden]]
        for number in range(count):
            archive = f"{part}-{number}.tar" if count > 1 else f"{part}.tar"
            pack(tmp_path / "tars" / archive, dict(files[number::count]))
    ours, theirs = load_dataset("tar", tmp_path / "tars"), load_dataset("folder", folder)
    assert ours.info.class_names == theirs.info.class_names == ("apple", "pear", "train")
    for got, expected in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert got.labels.tolist() == expected.labels.tolist() == [0, 0, 0, 1, 1, 2]
        for row in range(len(names)):
            with got.open(row) as one, expected.open(row) as other:
                assert one.read() == other.read()


def test_folders_named_like_their_archives_are_no_classes(fruit: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number in range(2):
            inside = f"fruit-{part}-{number}"
            files = [
                (f"{inside}/{path.parent.name}/{path.name}", path.read_bytes())
                for _, path in images_of(fruit / part)[number::2]
            ]
            pack(tmp_path / "tars" / f"{inside}.tar", dict(files))
    found = load_dataset("tar", tmp_path / "tars")
    assert found.info.class_names == CLASSES
    assert found.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_images_deeper_inside_an_archive_of_one_class(fruit: Path, tmp_path: Path) -> None:
    """As ImageNet's inner archives, had they folders."""
    for part in ("train", "val"):
        (tmp_path / "tars").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "tars" / f"{part}.tar", "w") as outer:
            for name, files in by_class(fruit, part).items():
                deeper = {f"views/{file}": content for file, content in files.items()}
                add(outer, f"{name}.tar", pack(tmp_path / "inner.tar", deeper).read_bytes())
    assert load_dataset("tar", tmp_path / "tars").info.class_names == CLASSES


def test_they_are_those_of_timms_reader(fruit: Path, tmp_path: Path) -> None:
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    for folder, root in (
        (as_one(fruit, tmp_path / "one"), "train.tar"),
        (as_classes(fruit, tmp_path / "many"), "train"),
    ):
        reader = ReaderImageInTar(str(folder / root))
        theirs = sorted(
            (file.read(), int(label)) for file, label in map(reader.__getitem__, range(len(reader)))
        )
        found = load_dataset("tar", folder)
        ours = [found.train.open(row).read() for row in range(len(found.train))]
        kept = [pair for pair in theirs if pair[0]]  # timm takes macOS's shadow files for images
        assert sorted(zip(ours, found.train_labels.tolist(), strict=True)) == kept


def test_a_member_of_an_inner_archive_is_named(fruit: Path, tmp_path: Path) -> None:
    found = load_dataset("tar", as_official(fruit, tmp_path / "tars"))
    assert found.train.name(0).endswith("ILSVRC2012_img_train.tar!0.JPEG")
    assert found.test.name(5).endswith("ILSVRC2012_img_val.tar!plum_1.png")


def test_archives_that_do_not_fit_are_refused(fruit: Path, tmp_path: Path) -> None:
    folder = as_one(fruit, tmp_path / "tars")
    with pytest.raises(UserError, match="needs a folder"):
        load_dataset("tar")
    with pytest.raises(UserError, match="no archives of training images"):
        load_dataset("tar", tmp_path / "nowhere")
    pear = {f"pear/{path.name}": path.read_bytes() for _, path in images_of(fruit / "val")[:2]}
    pack(folder / "val.tar", pear)
    with pytest.raises(UserError, match=r"class 'apple' has no folder in .*val\.tar"):
        load_dataset("tar", folder)
    pack(folder / "val.tar", {"0.png": b"image", **pear})
    with pytest.raises(UserError, match=r"val\.tar!0\.png lies in no class folder"):
        load_dataset("tar", folder)
    pack(folder / "val.tar", {"fruit.txt": b"apple"})
    with pytest.raises(UserError, match=r"val\.tar has no images"):
        load_dataset("tar", folder)
    (folder / "val.tar").write_bytes((folder / "train.tar").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"val\.tar is no whole, uncompressed tar"):
        load_dataset("tar", folder)
    (folder / "val.tar").unlink()
    with pytest.raises(UserError, match=r"no archives of test images.*data\.test_split"):
        load_dataset("tar", folder)


def test_the_list_must_fit_the_archive(fruit: Path, tmp_path: Path) -> None:
    folder = as_official(fruit, tmp_path / "tars")
    listed = folder / "meta" / "val.txt"
    listed.write_text(listed.read_text() + "\nquince.png 1")
    with pytest.raises(UserError, match=r"names quince\.png, which is not in .*_val\.tar"):
        load_dataset("tar", folder)
    listed.write_text("apple_0.JPEG 7")
    with pytest.raises(UserError, match="class number below 3"):
        load_dataset("tar", folder)
