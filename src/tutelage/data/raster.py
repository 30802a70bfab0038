"""Encoded images that nobody vouches for, opened as pixels."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

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
