"""What a photo's file says beside its pixels: which way up it is, EXIF, XMP, dots per inch, how it was compressed."""

import re
import struct
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, JpegImagePlugin

# What Pillow raises on damaged files and on values of another type than their tag's, beside errors of its own.
PILLOW_ERRORS: tuple[type[Exception], ...] = (OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError)
PILLOW_ERRORS += (LookupError, ArithmeticError, RuntimeError, struct.error)
XMP_TAG, XMP_TEXT = 700, "XML:com.adobe.xmp"  # where a TIFF and a PNG hold it

_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What a TIFF's tags say of how its pixels are stored, and EXIF's orientation and thumbnail: all of it is written anew.
_STRUCTURE = {_ORIENTATION, 254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 301, 317, 320, 330, 332}
_STRUCTURE |= {338, 339, 340, 341, 347, 34675, XMP_TAG, *range(290, 294), *range(322, 326), *range(512, 522)}
_STRUCTURE |= set(range(529, 533))
_DIRECTORIES = (0x8769, 0x8825)  # within EXIF: of the camera and of the place
_INTEROP = 0xA005  # a directory within a directory, by its offset, which is another when written anew
_DPI_LIMIT = 65_535  # what a JPEG can say


def upright(image: Image.Image) -> Image.Image:
    """A copy of an image turned as its EXIF says; other than Pillow's own, it writes no EXIF, which can fail."""
    image.load()
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return image.copy() if turn is None else image.transpose(turn)


def exif_bytes(image: Image.Image) -> bytes:
    """EXIF, b"" for none, without what says how the pixels lay in the file, the thumbnail, and what cannot be written.

    Pillow reads values of another type than their tag's, but does not write them.
    """
    exif, kept = image.getexif(), Image.Exif()
    kept.endian = exif.endian
    for tag in set(exif) - _STRUCTURE:
        value = exif.get_ifd(tag) if tag in _DIRECTORIES else exif[tag]
        if tag in _DIRECTORIES:
            value = {key: entry for key, entry in value.items() if key != _INTEROP and _can_write(tag, {key: entry})}
        if _can_write(tag, value):
            kept[tag] = value
    return kept.tobytes() if len(kept) else b""


def _can_write(tag: int, value: object) -> bool:
    alone = Image.Exif()
    alone[tag] = value
    try:
        alone.tobytes()
    except PILLOW_ERRORS:
        return False
    return True


def xmp_bytes(image: Image.Image) -> bytes:
    """What programs wrote about the photo as XMP, but not which way up it is; b"" for nothing."""
    xmp = image.info.get("xmp") or image.info.get(XMP_TEXT) or b""
    raw = xmp.encode() if isinstance(xmp, str) else xmp if isinstance(xmp, bytes) else b""
    return re.sub(rb'\s*tiff:Orientation="\d"|<tiff:Orientation>\d</tiff:Orientation>', b"", raw)


def dots_per_inch(image: Image.Image) -> tuple[float, float] | None:
    """Dots per inch that every format can say; Pillow has 1 for a TIFF that says nothing of them."""
    try:
        across, down = map(float, image.info.get("dpi") or ())
    except (TypeError, ValueError, ArithmeticError):
        return None
    return (across, down) if 1 < across <= _DPI_LIMIT and 1 < down <= _DPI_LIMIT else None


def jpeg_options(image: Image.Image) -> dict[str, Any]:
    """Quantization tables and chroma subsampling of a JPEG, to write one with again; {} for another image."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return {}
    sampling = JpegImagePlugin.get_sampling(image)
    return {"qtables": tables, **({"subsampling": sampling} if sampling >= 0 else {})}


def is_lossless(source: Path | BinaryIO) -> bool:
    """Whether a WebP's picture, or the first of several, is stored without loss: its chunk is VP8L, not VP8."""
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        file.seek(0)
        chunk = re.search(rb"VP8[L ]", file.read())
    return chunk is not None and chunk[0] == b"VP8L"
