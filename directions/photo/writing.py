"""Images written as files, and photos like the files that they were read from."""

import io
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from directions.photo.png16 import to_png
from directions.photo.reading import KEPT_MODES, XMP_TAG, XMP_TEXT, Photo
from flowgrad.errors import UsageError
from flowgrad.files import atomic_path, refuse_existing
from flowgrad.images import to_rgb

JPEG_QUALITY = 95
_SEGMENT_LIMIT = 65_000  # bytes; a JPEG's segment holds 65,533
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
SAVED_SUFFIXES = tuple(_FORMATS)
_MODES = {  # that a format can hold
    "PNG": ("RGB", "RGBA", "L", "LA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": KEPT_MODES,
    "JPEG": ("RGB", "L", "CMYK"),
}


def save_image(image: Image.Image, path: Path, overwrite: bool = False) -> Path:
    """Write an image as 8-bit RGB in the format of `path`'s suffix. Returns the path. Raises as `save_photo`."""
    return save_photo(image.convert("RGB"), Photo(image), path, overwrite)


def save_photo(pixels: Image.Image, like: Photo, path: Path, overwrite: bool = False) -> Path:
    """Write pixels in the format of `path`'s suffix, with what `like` had: profile, EXIF, XMP, dots per inch, a
    JPEG's own tables, no loss in a WebP that had none.

    Returns the path. Raises UsageError for another suffix and for a file that exists (unless `overwrite`).
    """
    if path.suffix.lower() not in SAVED_SUFFIXES:
        raise UsageError(f"{path.name} does not say which kind of image. Let it end in {', '.join(SAVED_SUFFIXES)}.")
    refuse_existing(path, overwrite)
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_bytes(pixels, like, path.suffix))
    return path


def to_bytes(pixels: Image.Image, like: Photo, suffix: str) -> bytes:
    """Pixels as a file in memory, in the format of a suffix, with what `like` had."""
    kind = _FORMATS[suffix.lower()]
    if kind == "PNG" and like.lower is not None and like.lower.mode == pixels.mode:
        return to_png(pixels, like.lower, like.icc, like.exif)
    stored, same = _fitting(pixels, kind)
    options = _options(like, kind, same)
    file = io.BytesIO()
    stored.save(file, kind, **{name: value for name, value in options.items() if value})
    return file.getvalue()


def _options(like: Photo, kind: str, same: bool) -> dict[str, Any]:
    """Pillow's options to write an image like a photo; `same`: its colours are still the photo's own."""
    options: dict[str, Any] = {"icc_profile": like.icc if same else b"", "exif": like.exif, "dpi": like.dpi}
    if kind == "JPEG":
        options |= like.jpeg if same and like.jpeg else {"quality": JPEG_QUALITY}
        options["exif"] = like.exif if len(like.exif) < _SEGMENT_LIMIT else b""
        options["xmp"] = like.xmp if len(like.xmp) < _SEGMENT_LIMIT else b""
    elif kind == "WEBP":
        options |= {"lossless": True, "exact": True} if like.lossless else {"quality": JPEG_QUALITY}
        options["xmp"] = like.xmp
    elif kind == "PNG" and like.xmp:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt(XMP_TEXT, like.xmp.decode("utf-8", "replace"))
    elif like.xmp:
        options["exif"] = _with_xmp(like.exif, like.xmp)
    return options


def _with_xmp(exif: bytes, xmp: bytes) -> bytes:
    """EXIF with XMP as one tag of it, as TIFF has it."""
    both = Image.Exif()
    both.load(exif)
    both[XMP_TAG] = xmp
    return both.tobytes()


def _fitting(pixels: Image.Image, kind: str) -> tuple[Image.Image, bool]:
    """An image in a mode that a format can hold, and whether its colours are still those of the photo's profile."""
    if pixels.mode in _MODES[kind]:
        return pixels, True
    if pixels.mode == "LA" and "RGBA" in _MODES[kind]:
        return pixels.convert("RGBA"), False
    return to_rgb(pixels), pixels.mode == "RGBA"
