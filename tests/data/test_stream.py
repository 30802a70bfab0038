"""Image files in folders: what is found, what is cut, and the same batches however they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

import tutelage
from toys import CLASSES, draw_folders, draw_image
from tutelage.data import StreamData, dataset_info, load_dataset
from tutelage.data.crops import ResizedCrop
from tutelage.errors import TutelageError, UserError


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    """Five training and two test images a class."""
    return draw_folders(tmp_path)


def stream(folder: Path, **options: object) -> StreamData:
    return StreamData(load_dataset("folder", folder), "cpu", image_size=32, **options)


def test_classes_and_counts_are_those_of_the_folders(fruit: Path) -> None:
    found = load_dataset("folder", fruit)
    assert found.info.class_names == CLASSES
    assert (found.info.train_count, found.info.test_count) == (15, 6)
    assert found.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert [Path(path).parent.name for path in found.test.paths] == [name for name in CLASSES for _ in "ab"]
    assert dataset_info("imagenet").num_classes == 1000
    assert dataset_info("imagenet").class_names[0] == "n01440764"


@pytest.mark.parametrize("lists", ["meta", "metas"])
def test_a_flat_validation_folder_is_read_through_its_list(fruit: Path, lists: str) -> None:
    lines = []
    for label, name in enumerate(CLASSES):
        for file in sorted((fruit / "val" / name).iterdir()):
            file.rename(fruit / "val" / f"{name}{file.name}")
            lines.append(f"{name}{file.name} {label}")
        (fruit / "val" / name).rmdir()
    (fruit / lists).mkdir()
    (fruit / lists / "val.txt").write_text("\n".join(reversed(lines)) + "\n")
    assert load_dataset("folder", fruit).test.labels.tolist() == [2, 2, 1, 1, 0, 0]
    (fruit / lists / "val.txt").write_text("nowhere.jpg 0\n")
    with pytest.raises(UserError, match=r"names .*nowhere\.jpg, which is not there"):
        load_dataset("folder", fruit)
    for line in ("apple0.JPEG 3", "apple0.JPEG ²", f"apple0.JPEG {'9' * 5000}"):
        (fruit / lists / "val.txt").write_text(line, encoding="utf-8")
        with pytest.raises(UserError, match=r"line 1 .*class number below 3"):
            load_dataset("folder", fruit)
    (fruit / lists / "val.txt").write_bytes(b"\xff 0")
    with pytest.raises(UserError, match=r"val\.txt is no text in UTF-8"):
        load_dataset("folder", fruit)


def test_imagenet_has_imagenets_classes(tmp_path: Path, fruit: Path) -> None:
    """By the name alone weights and records tell what their classes are."""
    with pytest.raises(
        UserError, match=r"class 'apple' is none of them \(3 classes for 1000\).*--data folder"
    ):
        load_dataset("imagenet", fruit)
    info, folder = dataset_info("imagenet"), tmp_path / "whole"
    for part in ("train", "val"):
        for name in info.class_names:
            (folder / part / name).mkdir(parents=True)
            (folder / part / name / "0.JPEG").touch()
    found = load_dataset("imagenet", folder)
    assert (found.info.class_names, found.info.test_count) == (info.class_names, 1000)
    for part in ("train", "val"):
        (folder / part / info.class_names[7] / "0.JPEG").unlink()
        (folder / part / info.class_names[7]).rmdir()
    with pytest.raises(
        UserError, match=rf"class '{info.class_names[7]}' is missing \(999 classes for 1000\)"
    ):
        load_dataset("imagenet", folder)


def test_folders_that_do_not_fit_are_refused_in_a_sentence(fruit: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*train"):
        load_dataset("folder", fruit / "nowhere")
    with pytest.raises(UserError, match="can't be downloaded"):
        load_dataset("imagenet", fruit, download=True)
    (fruit / "train" / "quince").mkdir()
    with pytest.raises(UserError, match="quince has no images"):
        load_dataset("folder", fruit)
    draw_image(fruit / "train" / "quince" / "0.png", 1)
    with pytest.raises(UserError, match=r"class 'quince' has no folder in .*val"):
        load_dataset("folder", fruit)
    (fruit / "val").rename(fruit / "later")
    with pytest.raises(UserError, match="no test images"):
        load_dataset("folder", fruit)


@pytest.mark.parametrize("size", [(64, 48), (30, 90), (33, 33)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_the_plain_view_is_torchvisions(tmp_path: Path, size: tuple[int, int], interpolation: str) -> None:
    draw_image(tmp_path / "image.png", 3, size)
    image = Image.open(tmp_path / "image.png")
    kind = InterpolationMode.BILINEAR if interpolation == "bilinear" else InterpolationMode.BICUBIC
    reference = transforms.Compose(
        [transforms.Resize(256, kind), transforms.CenterCrop(224), transforms.PILToTensor()]
    )
    assert torch.equal(ResizedCrop(224, interpolation=interpolation)(image, 0), reference(image))


def test_the_filter_changes_neither_window_nor_side(tmp_path: Path) -> None:
    """The bilinear views are those from before there was a choice."""
    draw_image(tmp_path / "image.png", 3, (64, 48))
    image, crops = Image.open(tmp_path / "image.png"), {}
    for kind in ("bilinear", "bicubic", "random"):
        crops[kind] = ResizedCrop(24, interpolation=kind)
    cubic = 0
    for view in range(1, 201):
        generator = torch.Generator().manual_seed(view)
        window = crops["random"]._window(48, 64, generator)
        mirrored = torch.rand((), generator=generator) < 0.5
        pair = []
        for mode in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC):
            cut = transforms.functional.resized_crop(image, *window, [24, 24], mode)
            cut = transforms.functional.hflip(cut) if mirrored else cut
            pair.append(transforms.functional.pil_to_tensor(cut))
        assert torch.equal(crops["bilinear"](image, view), pair[0])
        assert torch.equal(crops["bicubic"](image, view), pair[1])
        found = crops["random"](image, view)
        assert torch.equal(found, pair[0]) or torch.equal(found, pair[1])
        cubic += int(torch.equal(found, pair[1]))
    assert 75 < cubic < 125


def test_random_windows_have_the_shares_and_shapes_of_torchvisions() -> None:
    crop, height, width = ResizedCrop(32), 300, 500
    ours, theirs = [], []
    torch.manual_seed(0)
    image = Image.new("RGB", (width, height))
    for view in range(1, 1501):
        top, left, h, w = crop._window(height, width, torch.Generator().manual_seed(view))
        assert 0 <= top <= height - h and 0 <= left <= width - w
        ours.append((h * w / height / width, w / h, top / height, left / width))
        i, j, h, w = transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        theirs.append((h * w / height / width, w / h, i / height, j / width))
    a, b = torch.tensor(ours), torch.tensor(theirs)
    torch.testing.assert_close(a.mean(0), b.mean(0), atol=0.025, rtol=0)
    torch.testing.assert_close(a.std(0), b.std(0), atol=0.025, rtol=0)


def test_a_very_long_image_is_cut_at_its_centre() -> None:
    top, left, h, w = ResizedCrop(32, scale=(0.9, 1.0))._window(10, 1000, torch.Generator().manual_seed(1))
    assert (top, h, w) == (0, 10, 13) and left == (1000 - 13) // 2


@pytest.mark.parametrize("size", [(30000, 1), (3, 20001)])
def test_a_line_of_pixels_takes_no_gigabytes(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    def resized(self: Image.Image, to: tuple[int, int], *arguments: object, **options: object) -> Image.Image:
        nonlocal largest
        largest = max(largest, to[0] * to[1])
        assert largest < 2**21
        return plain(self, to, *arguments, **options)

    plain = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", resized)
    image = Image.new("RGB", size, (90, 60, 30))
    for view in range(4):
        assert ResizedCrop(224)(image, view).flatten(1).unique(dim=1).flatten().tolist() == [90, 60, 30]
    assert largest


def test_the_centre_of_a_very_long_image_is_shown() -> None:
    ramp = torch.linspace(0, 255, 999).round().to(torch.uint8).expand(3, 9, 999)
    image = transforms.functional.to_pil_image(ramp)
    reference = transforms.Compose(
        [
            transforms.Resize(36, InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.PILToTensor(),
        ]
    )
    assert (ResizedCrop(32)(image, 0).int() - reference(image).int()).abs().max() <= 1
    upright = ResizedCrop(32)(image.transpose(Image.Transpose.TRANSPOSE), 0)
    assert torch.equal(upright, ResizedCrop(32)(image, 0).transpose(1, 2))


def test_half_of_the_views_are_mirrored() -> None:
    image = Image.new("RGB", (64, 64))
    image.paste((255, 0, 0), (0, 0, 32, 64))  # the left half is red
    crop = ResizedCrop(16, scale=(0.99, 1.0), ratio=(1.0, 1.0))
    mirrored = sum(int(crop(image, view)[0, :, 0].max() == 0) for view in range(1, 401))
    assert 160 < mirrored < 240
    plain = ResizedCrop(16, scale=(0.99, 1.0), ratio=(1.0, 1.0), flip=False)
    assert all(plain(image, view)[0, :, 0].max() == 255 for view in range(1, 50))


def test_workers_steps_and_take_give_the_same_images(fruit: Path) -> None:
    alone = list(stream(fruit).train_batches(2, 5, 4))
    assert [len(batch.targets) for batch in alone] == [4, 4, 4, 3]
    assert sorted(torch.cat([batch.index for batch in alone]).tolist()) == list(range(15))
    several = list(stream(fruit, workers=2).train_batches(2, 5, 4))
    later = list(stream(fruit).train_batches(2, 5, 4, start_step=2))
    for got, expected in zip([*several, *later], [*alone, *alone[2:]], strict=True):
        for a, b in zip(got[:4], expected[:4], strict=True):
            assert torch.equal(a, b)
    taken = stream(fruit).take(alone[1].index, alone[1].view)
    assert torch.equal(taken.images, alone[1].images) and torch.equal(taken.targets, alone[1].targets)
    other = next(stream(fruit).train_batches(3, 5, 4))
    assert not torch.equal(other.images, alone[0].images)


def test_evaluation_shows_every_image_once_and_plain(fruit: Path) -> None:
    data = stream(fruit, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    batches = list(data.eval_batches("test", 4))
    assert [len(batch.targets) for batch in batches] == [4, 2]
    assert batches[0].images.shape == (4, 3, 32, 32) and batches[0].images.max() <= 1
    brightest = torch.cat([batch.images for batch in batches]).mean((2, 3)).argmax(1)
    assert torch.equal(brightest, torch.cat([batch.targets for batch in batches]))
    plain = stream(fruit, augment=False)
    shown = next(plain.train_batches(0, 0, 15))
    straight = next(plain.eval_batches("train", 15))
    assert torch.equal(shown.images, straight.images[shown.index])


def test_validation_rows_come_out_of_the_training_files(fruit: Path) -> None:
    rows = torch.tensor([14, 0, 3])
    data = stream(fruit, train_indices=torch.tensor([5, 1, 2]), val_indices=rows)
    assert (data.train_size, data.size("val"), data.size("test")) == (3, 3, 6)
    assert data.train_labels.tolist() == [1, 0, 0]
    assert next(data.eval_batches("val", 8)).targets.tolist() == [2, 0, 0]
    with pytest.raises(UserError, match="also trained on"):
        stream(fruit, train_indices=torch.tensor([5, 1]), val_indices=torch.tensor([1]))


def test_one_damaged_file_is_left_out_and_named_many_end_the_run(fruit: Path) -> None:
    (fruit / "train" / "pear" / "1.png").write_bytes(b"no image")
    data = stream(fruit)
    sizes = [len(batch.targets) for batch in data.train_batches(0, 0, 4)]
    assert sum(sizes) == 14
    assert [Path(path).name for path in data.unreadable] == ["1.png"]
    blank = data.take(torch.tensor([6]), torch.tensor([9])).images
    assert blank.flatten(2).std(2).max() == 0
    (fruit / "val" / "plum" / "0.JPEG").write_bytes(b"")
    with pytest.raises(TutelageError, match=r"2 of 21 image files can't be read"):
        list(data.eval_batches("test", 8))


def test_a_network_is_trained_on_folders_and_resumed(fruit: Path, tmp_path: Path) -> None:
    settings = [
        "data.image_size=32",
        "data.batch_size=4",
        "schedule.epochs=2",
        "optimiser.lr=0.01",
        "runtime.tensorboard=false",
        "runtime.workers=0",
    ]
    (fruit / "train" / "pear" / "1.png").write_bytes(b"no image")
    run = tutelage.train(
        model="resnet8_cifar", data="folder", data_dir=fruit, out=tmp_path / "run", settings=settings
    )
    assert run["protocol"]["train_images"] == 15 and run["protocol"]["image_size"] == [32, 32]
    assert run["summary"]["last"]["test"]["images"] == 6
    assert [Path(path).name for path in run["unreadable"]] == ["1.png"]
