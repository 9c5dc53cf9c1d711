"""A photo as it is stored: read without losing what a written copy should keep, and written again like it."""

import io
import re
import struct
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

from directions.photo.png16 import lower_bits, to_png
from directions.photo.reading import JPEG_QUALITY, ORIENTATION, SAVED_SUFFIXES, open_image
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path, refuse_existing
from flowgrad.images import to_rgb

_XMP = 700  # the tag of a TIFF that holds it
# What a TIFF's tags say of how its pixels are stored, and EXIF's orientation and thumbnail: all of it is written anew.
_STRUCTURE = {ORIENTATION, 254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 301, 317, 320, 330, 332}
_STRUCTURE |= {338, 339, 340, 341, 347, 34675, _XMP, *range(290, 294), *range(322, 326), *range(512, 522)}
_STRUCTURE |= set(range(529, 533))
_WITHIN = (0x8769, 0x8825)  # EXIF's directories of the camera and of the place
_INTEROP = 0xA005  # a directory within a directory, by its offset, which is another when written anew
# What Pillow raises when it writes a value of another type than the tag's: whatever its packing does with it.
_WRITER_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
_SEGMENT_LIMIT = 65_000  # bytes; a JPEG's segment holds 65,533
_DPI_LIMIT = 65_535  # what a JPEG can say
_PNG_XMP = "XML:com.adobe.xmp"
_KEPT_MODES = ("RGB", "RGBA", "L", "LA", "CMYK", "I;16")
_ALPHA_MODES = ("PA", "La", "RGBa")


@dataclass(frozen=True, eq=False)
class Picture:
    """A photo upright, in the mode it has on disk (RGB, RGBA, L, LA, CMYK or I;16), with what belongs to it.

    kind: Pillow's name of the format; exif without orientation and thumbnail, icc, xmp without orientation: bytes,
    empty for none; dpi: across and down; jpeg: quantization tables and chroma subsampling of a JPEG, to be written with
    again; lossless: whether a WebP is; lower: the lower 8 bits of a PNG with 16 for each colour, whose upper ones
    `pixels` are.
    """

    pixels: Image.Image
    kind: str = ""
    exif: bytes = b""
    icc: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    jpeg: dict[str, Any] = field(default_factory=dict)
    lossless: bool = False
    lower: Image.Image | None = None

    @property
    def rgb(self) -> Image.Image:
        """The photo as 8-bit RGB; transparency becomes white."""
        return to_rgb(self.pixels)


def read_picture(path: Path, content: BinaryIO | None = None) -> Picture:
    """Read a photo (`content`, if given, under the name `path`) to write it again. Raises as `photos.open_image`."""
    with open_image(path, content) as (opened, upright):
        kind = "JPEG" if opened.format == "MPO" else opened.format or ""
        pixels = _kept(upright)
        pixels.info.clear()  # Pillow would write it again, whatever became of the pixels
        return Picture(
            pixels,
            kind,
            exif=_exif(opened),
            icc=opened.info.get("icc_profile") or b"",
            xmp=_xmp(opened),
            dpi=_dpi(opened),
            jpeg=_jpeg(opened),
            lossless=kind == "WEBP" and _is_lossless(content or path),
            lower=lower_bits(content or path) if kind == "PNG" else None,
        )


def save_picture(pixels: Image.Image, like: Picture, path: Path, overwrite: bool = False) -> Path:
    """Write pixels in the format of `path`'s suffix, with what `like` had: profile, EXIF, XMP, dots per inch, a
    JPEG's own tables, no loss in a WebP that had none.

    Returns the path. Raises UsageError for another suffix and for a file that exists (unless `overwrite`).
    """
    if path.suffix.lower() not in SAVED_SUFFIXES:
        raise UsageError(f"{path.name} does not say which kind of image. Let it end in {', '.join(SAVED_SUFFIXES)}.")
    refuse_existing(path, overwrite)
    with atomic_path(path) as temporary:
        _write(pixels, like, path.suffix.lower(), temporary)
    return path


def to_bytes(pixels: Image.Image, like: Picture, suffix: str) -> bytes:
    """Pixels as a file in memory, ".png" or ".jpg", with what `like` had."""
    buffer = io.BytesIO()
    _write(pixels, like, suffix, buffer)
    return buffer.getvalue()


def _write(pixels: Image.Image, like: Picture, suffix: str, target: Path | io.BytesIO) -> None:
    if suffix == ".png" and like.lower is not None and like.lower.mode == pixels.mode:
        raw = to_png(pixels, like.lower, like.icc, like.exif)
        target.write(raw) if isinstance(target, io.BytesIO) else target.write_bytes(raw)
        return
    shown, options = _as_stored(pixels, like, suffix)
    shown.save(target, {".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}.get(suffix, "JPEG"), **options)


def copy_file(source: Path, path: Path, overwrite: bool = False) -> Path:
    """Copy a photo that nothing was changed in, byte for byte. Returns the path. Raises as `save_picture`."""
    refuse_existing(path, overwrite)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise FlowgradError(f"cannot read {source}: {error.strerror}. Check the name and its permissions.") from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def _as_stored(pixels: Image.Image, like: Picture, suffix: str) -> tuple[Image.Image, dict[str, Any]]:
    """An image in a mode that a format can hold, and Pillow's options to write it like the photo."""
    shown, same = _fitting(pixels, suffix)
    options: dict[str, Any] = {"icc_profile": like.icc if same else b"", "exif": like.exif, "dpi": like.dpi}
    if suffix in (".jpg", ".jpeg"):
        options |= like.jpeg if same and like.jpeg else {"quality": JPEG_QUALITY}
        options["exif"] = like.exif if len(like.exif) < _SEGMENT_LIMIT else b""
        options["xmp"] = like.xmp if len(like.xmp) < _SEGMENT_LIMIT else b""
    elif suffix == ".webp":
        options |= {"lossless": True, "exact": True} if like.lossless else {"quality": JPEG_QUALITY}
        options["xmp"] = like.xmp
    elif suffix == ".png":
        options["pnginfo"] = _png_texts(like.xmp)
    elif like.xmp:
        options["exif"] = _with_xmp(like.exif, like.xmp)
    return shown, {key: value for key, value in options.items() if value}


def _kept(image: Image.Image) -> Image.Image:
    """A mode that pixels can be added to, and as little changed as that allows."""
    if image.mode.startswith("I"):
        return Image.fromarray(np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16))
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image.copy() if image.mode in _KEPT_MODES else image.convert("RGB")


def _exif(image: Image.Image) -> bytes:
    """What the camera told, but nothing of how the pixels lay in the file, nor a small copy of what they were."""
    exif = image.getexif()
    for tag in _STRUCTURE & set(exif):
        del exif[tag]
    return _exif_bytes(exif) or _exif_bytes(_writable(exif)) or b""


def _exif_bytes(exif: Image.Exif) -> bytes | None:
    """EXIF as bytes, b"" for none at all; None where it holds a value that Pillow reads, but cannot write."""
    try:
        return exif.tobytes() if len(exif) else b""
    except _WRITER_ERRORS:
        return None


def _writable(exif: Image.Exif) -> Image.Exif:
    """The tags of EXIF that can be written, and of its two directories within."""
    found = Image.Exif()
    for tag in exif:
        value = exif.get_ifd(tag) if tag in _WITHIN else exif[tag]
        if tag in _WITHIN:
            value = {key: each for key, each in value.items() if key != _INTEROP and _can_write(tag, {key: each})}
        if _can_write(tag, value):
            found[tag] = value
    return found


def _can_write(tag: int, value: object) -> bool:
    alone = Image.Exif()
    alone[tag] = value
    return _exif_bytes(alone) is not None


def _xmp(image: Image.Image) -> bytes:
    """What programs told of the photo, but not which way it lies."""
    found = image.info.get("xmp") or image.info.get(_PNG_XMP) or b""
    raw = found.encode() if isinstance(found, str) else found if isinstance(found, bytes) else b""
    return re.sub(rb'\s*tiff:Orientation="\d"|<tiff:Orientation>\d</tiff:Orientation>', b"", raw)


def _with_xmp(exif: bytes, xmp: bytes) -> bytes:
    """EXIF with XMP as one tag of it, as TIFF has it."""
    both = Image.Exif()
    both.load(exif)
    both[_XMP] = xmp
    return both.tobytes()


def _png_texts(xmp: bytes) -> PngImagePlugin.PngInfo:
    texts = PngImagePlugin.PngInfo()
    if xmp:
        texts.add_itxt(_PNG_XMP, xmp.decode("utf-8", "replace"))
    return texts


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Dots per inch that every format can say; Pillow has 1 for a TIFF that says nothing of them."""
    try:
        across, down = map(float, image.info.get("dpi") or ())
    except (TypeError, ValueError, ArithmeticError):
        return None
    return (across, down) if 1 < across <= _DPI_LIMIT and 1 < down <= _DPI_LIMIT else None


def _is_lossless(source: Path | BinaryIO) -> bool:
    """Whether a WebP's picture, or the first of several, is stored without loss: its chunk is VP8L."""
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            kind, size = struct.unpack("<4sI", head)
            if kind in (b"VP8 ", b"VP8L"):
                return bool(kind == b"VP8L")
            inside = kind == b"ANMF"  # a frame: chunks follow after 16 bytes
            file.seek(16 if inside else size + size % 2, io.SEEK_CUR)
    return False


def _jpeg(image: Image.Image) -> dict[str, Any]:
    tables = getattr(image, "quantization", None)
    if not tables:
        return {}
    sampling = JpegImagePlugin.get_sampling(image)
    return {"qtables": tables, **({"subsampling": sampling} if sampling >= 0 else {})}


def _fitting(pixels: Image.Image, suffix: str) -> tuple[Image.Image, bool]:
    """An image in a mode that a format can hold, and whether it is still the photo's own (as its profile is)."""
    able = {
        ".png": ("RGB", "RGBA", "L", "LA", "I;16"),
        ".webp": ("RGB", "RGBA"),
        ".tif": _KEPT_MODES,
        ".tiff": _KEPT_MODES,
    }.get(suffix, ("RGB", "L", "CMYK"))
    if pixels.mode in able:
        return pixels, True
    if pixels.mode in ("LA", "RGBA") and "RGBA" in able:
        return pixels.convert("RGBA"), pixels.mode == "RGBA"
    return to_rgb(pixels), pixels.mode == "RGBA"
