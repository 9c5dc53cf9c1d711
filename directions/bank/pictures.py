"""Pictures of strangers' directions: read within limits, and encoded anew."""

import base64
import io
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image

PIXEL_LIMIT = 8_000_000
_QUALITY = 85


def read_picture(source: Path | BinaryIO) -> Image.Image | None:
    """Return a PNG, JPEG or WebP as an RGB image; None for what is none, or an enormous one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source, formats=("PNG", "JPEG", "WEBP")) as image:
                return image.convert("RGB") if image.width * image.height <= PIXEL_LIMIT else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def read_data_url(url: str) -> Image.Image | None:
    """Return the picture of a header's thumbnail; None for none."""
    try:
        return read_picture(io.BytesIO(base64.b64decode(url.partition(",")[2], validate=True)))
    except ValueError:  # no base64 after all
        return None


def to_png(picture: Image.Image) -> bytes:
    """Return an image as a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def image_url(picture: Image.Image) -> str:
    """Return an RGB image as a JPEG data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return data_url(buffer.getvalue(), "image/jpeg")


def data_url(raw: bytes, kind: str) -> str:
    """Return bytes of a media type as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"
