"""Images of foreign origin: which formats are opened at all, and what becomes of their pixels."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from miniatures import CLASSES as SYNSETS
from miniatures import jpeg, tiny_files, tiny_info, write_files
from tutelage.data.crops import ResizedCrop
from tutelage.data.decoding import Cut, Item, Place
from tutelage.data.download import RemoteFile
from tutelage.data.folders import Files
from tutelage.data.raster import open_image, to_rgb
from tutelage.data.tiny_imagenet import load_tiny_imagenet
from tutelage.data.tiny_imagenet_preparation import prepare_tiny_imagenet
from tutelage.errors import UserError

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(hello) print quit\n%%EOF\n"
KINDS = {
    "a.jpg": "JPEG",
    "b.mpo.jpg": "MPO",
    "c.png": "PNG",
    "d.ppm": "PPM",
    "e.pgm": "PPM",
    "f.bmp": "BMP",
    "g.tif": "TIFF",
    "h.webp": "WEBP",
}


def shown(path: Path, side: int = 8) -> Item:
    """The plain view of one file."""
    cut = Cut({"train": Files([str(path)], torch.zeros(1, dtype=torch.int64))}, ResizedCrop(side, 1.0))
    return cut[Place("train", 0, 0)]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Pillow would have had Ghostscript run."""
    calls: list[str] = []

    def run(*_: object, **__: object) -> object:
        calls.append("gs")
        return Image.new("RGB", (64, 64)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    return calls


def test_an_image_that_is_a_program_is_not_run(tmp_path: Path, started: list[str]) -> None:
    path = tmp_path / "evil.jpg"
    path.write_bytes(POSTSCRIPT)
    Image.open(path).load()
    assert started == ["gs"]  # else the rest proves nothing
    assert not shown(path).good and started == ["gs"]


def test_nor_is_one_among_tiny_images(tmp_path: Path, started: list[str]) -> None:
    files = {**tiny_files(), f"train/{SYNSETS[0]}/images/{SYNSETS[0]}_0.JPEG": POSTSCRIPT}
    original = write_files(tmp_path / "original", files)
    prepared = prepare_tiny_imagenet(original, tmp_path / "made", tiny_info())["folder"]
    with pytest.raises(UserError, match="1 of 12 image files are no readable images"):
        load_tiny_imagenet(tiny_info(), RemoteFile("", ""), Path(prepared), False)
    assert not started


@pytest.mark.parametrize("name", KINDS)
def test_the_formats_of_the_known_endings_are_read(tmp_path: Path, name: str) -> None:
    image = Image.new("RGB", (8, 8), (200, 40, 90))
    if KINDS[name] == "MPO":
        image.save(tmp_path / name, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    else:
        image.convert("L" if name.endswith("pgm") else "RGB").save(tmp_path / name, KINDS[name])
    item = shown(tmp_path / name)
    expected = torch.tensor(image.convert("L").getpixel((0, 0)) if name.endswith("pgm") else (200, 40, 90))
    assert item.good and (item.image.int() - expected).abs().max() < 5


def test_other_formats_are_not_whatever_their_names(tmp_path: Path) -> None:
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "GIF")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    assert not shown(tmp_path / "a.png").good
    (tmp_path / "b.png").write_bytes(jpeg(80))  # a wrong name alone is harmless
    assert shown(tmp_path / "b.png").good


def levels() -> np.ndarray:
    """All grey levels of 8 bits, and what they are in 16: 257 times as much."""
    return np.arange(256).reshape(16, 16)


def encoded(array: np.ndarray, kind: str) -> BytesIO:
    file = BytesIO()
    Image.fromarray(array).save(file, kind)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF", "big-endian TIFF"])
def test_grey_of_16_bits_is_scaled(tmp_path: Path, kind: str) -> None:
    deep = (levels() * 257).astype(">u2" if kind.startswith("big") else "<u2")
    path = tmp_path / "deep"
    path.write_bytes(encoded(deep, kind.split()[-1]).getvalue())
    item = shown(path, 16)
    assert item.good and all(np.array_equal(item.image[..., channel], levels()) for channel in range(3))


def test_it_is_scaled_too_where_pillow_opens_it_in_32_bits() -> None:
    """Pillow before 10.3 opens PNG so."""
    image = Image.fromarray((levels() * 257).astype(np.int32))
    image.format = "PNG"
    assert np.array_equal(np.asarray(to_rgb(image))[..., 1], levels())


def test_grey_of_12_bits_in_a_tiff_is_not_black() -> None:
    """Two pixels, 0 and 4095, packed into three bytes."""
    file = encoded(np.zeros((1, 2), np.uint16), "TIFF")
    image = Image.open(file)
    raw = bytearray(file.getvalue())
    start = image.tag_v2[273][0]
    raw[start : start + 3] = bytes.fromhex("000fff")
    at = raw.index((258).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    raw[at + 8 : at + 10] = (12).to_bytes(2, "little")
    found = open_image(BytesIO(bytes(raw)))
    assert np.asarray(found).tolist() == [[0, 4095]]
    assert np.asarray(to_rgb(found))[..., 0].tolist() == [[0, 255]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_grey_without_a_known_range_is_unreadable(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "odd.tif"
    path.write_bytes(encoded((levels() / 255).astype(kind), "TIFF").getvalue())
    assert not shown(path).good


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_other_modes_are_converted_as_before(mode: str) -> None:
    image = Image.fromarray(levels().astype(np.uint8)).convert("RGB").convert(mode)
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()
