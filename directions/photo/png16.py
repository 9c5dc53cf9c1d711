"""PNG with 16 bits for each of three or four channels, which Pillow reads and writes with 8: the other 8 beside them.

An edit changes the upper 8 bits; the lower ones stay, so that what is not edited keeps every bit.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import putchunk

_RAW = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}  # big-endian samples, read as if they were little-endian
_COLOUR_TYPES = {"RGB": 2, "RGBA": 6}
_ROWS = 64  # compressed at a time


@contextmanager
def open_lower(source: Path | BinaryIO) -> Iterator[Image.Image | None]:
    """Such a PNG opened as an image of the lower 8 bits of each sample; None for any other."""
    if not isinstance(source, Path):
        source.seek(0)
    with Image.open(source, formats=("PNG",)) as image:
        deep = bool(image.tile) and image.tile[0].args in _RAW
        image.tile = [tile._replace(args=_RAW[str(tile.args)]) for tile in image.tile if deep]
        yield image if deep else None


def to_png(upper: Image.Image, lower: Image.Image, icc: bytes = b"", exif: bytes = b"") -> bytes:
    """A PNG of 16 bits from two images (RGB or RGBA) of 8; every row is stored as its difference to the one above."""
    file = BytesIO()
    file.write(b"\x89PNG\r\n\x1a\n")
    putchunk(file, b"IHDR", struct.pack(">IIBBBBB", *upper.size, 16, _COLOUR_TYPES[upper.mode], 0, 0, 0))
    if icc:
        putchunk(file, b"iCCP", b"icc\0\0", zlib.compress(icc))
    if exif:
        putchunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    putchunk(file, b"IDAT", _compressed(upper, lower))
    putchunk(file, b"IEND")
    return file.getvalue()


def _compressed(upper: Image.Image, lower: Image.Image) -> bytes:
    packer, parts = zlib.compressobj(), []
    above = np.zeros((1, upper.width * len(upper.getbands()) * 2), np.uint8)
    for top in range(0, upper.height, _ROWS):
        box = (0, top, upper.width, min(top + _ROWS, upper.height))
        pair = np.stack([np.asarray(image.crop(box)) for image in (upper, lower)], -1)
        rows = pair.reshape(len(pair), -1)
        filtered = np.insert(np.diff(rows, axis=0, prepend=above), 0, 2, axis=1)  # 2: PNG's filter "up"
        parts.append(packer.compress(filtered.tobytes()))
        above = rows[-1:]
    return b"".join([*parts, packer.flush()])
