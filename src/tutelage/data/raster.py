"""Encoded images that nobody vouches for, opened as pixels."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""What files with torchvision's ``IMG_EXTENSIONS`` hold, in Pillow's words.

Pillow goes by the content and not by the name of a file. Left to itself it would also try formats that are
programs (it has Ghostscript run PostScript), whatever the file is called. JPEG includes MPO, several JPEG
images in one file as phones write it, of which the first is taken.
"""


def open_image(file: BinaryIO) -> Image.Image:
    """The image in a file, its pixels not yet decoded.

    Raises:
        OSError: It has another format than `FORMATS`.
        Exception: What a decoder raises for damaged content is anybody's guess.
    """
    return Image.open(file, formats=FORMATS)


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image in the mode "RGB", of 8 bits a channel.

    Grey of 16 bits is scaled, 65535 to 255; Pillow's own conversion cuts all above 255 off, to white.

    Raises:
        ValueError: Nobody can tell which of its numbers is white: grey of 32 bits or of floating point.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow's "I" has 32 bits, but of these two formats the range of 16 bits; it opens PGM so, and before
        # 10.3 it opened PNG so.
        grey = np.asarray(image).astype(np.int64)
        white = 2 ** _bits(image) - 1
        return Image.fromarray(((grey * 255 + white // 2) // white).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its grey levels, in Pillow's mode {image.mode}, have no known range")
    return image.convert("RGB")


def _bits(image: Image.Image) -> int:
    """Depth of a grey image that comes in 16 bits: as stored, which in TIFF may be 12."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16
    return int(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])
