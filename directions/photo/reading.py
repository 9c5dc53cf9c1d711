"""Photos: read whatever way they are stored with all that their files say of them, and turned into tensors."""

import re
import stat
import struct
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, cast

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from directions.photo.png16 import open_lower
from flowgrad.errors import FlowgradError, UsageError, reason
from flowgrad.images import to_rgb

if TYPE_CHECKING:
    import torch

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".heic", ".heif", ".avif")
# What is decoded: no format that starts a program, asks the network, or has no use for photos.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "HEIF", "AVIF")
PIXEL_LIMIT = 120_000_000  # what a large camera makes; a file that unpacks to more is an accident or an attack
BYTES_LIMIT = 8 * PIXEL_LIMIT  # of a photo's file: what so many take with four 16-bit numbers each
KEPT_MODES = ("RGB", "RGBA", "L", "LA", "CMYK", "I;16")

# What Pillow raises on values of another type than their tag's.
_TAG_ERRORS: tuple[type[Exception], ...] = (OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError)
_TAG_ERRORS += (LookupError, ArithmeticError, RuntimeError, struct.error)
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
_ALPHA_MODES = ("PA", "La", "RGBa")
_PHOTOMETRIC, _YCBCR = 0x0106, 6  # TIFF's tag of what the numbers of a pixel mean, and one of its values
_NO_FILES = (
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_MISSING_HEIC = "Run: pip install 'flowgrad[heic]', or convert it to JPEG."

Align = Literal["auto", "always", "never"]


@dataclass(frozen=True, eq=False)
class Photo:
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


class Named(Protocol):
    """What messages call a photo: a path, or whatever else is written as its place."""

    @property
    def suffix(self) -> str: ...


def read_photo(path: Named, content: BinaryIO | None = None, enough: int | None = None) -> Photo:
    """Read the photo at a path, or from `content`, under the name `path`.

    enough: pixels of the longer side that will do. A JPEG that has twice as many, or more, is decoded at a reduced
    scale, which takes a fraction of the memory; photos of other formats are of their own size always.
    Raises FlowgradError for a file that is missing, no image, damaged, over PIXEL_LIMIT, or of pixels whose range is
    unknown (floating-point, or a TIFF's of 32 bits), and UsageError for what is no file, as a pipe.
    """
    source = content or cast(Path, path)
    if isinstance(source, Path):
        check_file(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; the limit of pixels below is our own
            with _open(source) as image:
                _check_pixels(path, image)
                return _decoded(_reduced(image, enough), source)
    except UnidentifiedImageError as error:
        remedy = _MISSING_HEIC if path.suffix.lower() in (".heic", ".heif") else "Convert it to JPEG or PNG."
        raise FlowgradError(f"{path} is not an image of a kind that can be read. {remedy}") from error
    except Image.DecompressionBombError as error:
        raise FlowgradError(_too_large(path)) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise FlowgradError(f"cannot read {path}: {error.strerror}. Check the name and its permissions.") from error
    except (FlowgradError, MemoryError):  # a lack of memory is no fault of the photo's
        raise
    except Exception as error:  # there are many decoders, and what they raise on damaged files is not told anywhere
        remedy = "Copy it again from where it came from."
        raise FlowgradError(f"{path} is a damaged or truncated image ({reason(error)}). {remedy}") from error


def check_file(path: Path) -> None:
    """Raise UsageError for a path at which there is neither a file nor a folder: a pipe, say, would be waited for."""
    with suppress(OSError):  # of what is not there, reading says so
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = next((name for check, name in _NO_FILES if check(mode)), "something else")
            raise UsageError(f"{path} is {kind}, not a file. Name a file.")


def _reduced(image: Image.Image, enough: int | None) -> Image.Image:
    """A JPEG set to be decoded with at least `enough` pixels along its longer side, and no more than need be."""
    if enough and image.format in ("JPEG", "MPO") and (share := enough / max(image.size)) <= 1:
        image.draft(None, (max(1, int(image.width * share)), max(1, int(image.height * share))))
    return image


def _open(source: Path | BinaryIO) -> Image.Image:
    """Open an image. Of YCbCr without compression Pillow would read four bytes a pixel; libtiff reads three."""
    image = Image.open(source, formats=_formats())
    if image.format != "TIFF" or image.getexif().get(_PHOTOMETRIC) != _YCBCR or image.tile[0].codec_name == "libtiff":
        return image
    before, TiffImagePlugin.READ_LIBTIFF = TiffImagePlugin.READ_LIBTIFF, True
    try:
        return Image.open(source, formats=_formats())
    finally:
        TiffImagePlugin.READ_LIBTIFF = before


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The formats that can be read here; HEIC if the extra `heic` is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_pixels(path: Named, image: Image.Image) -> None:
    signed = image.mode == "I" and image.format == "TIFF"  # PNG and PPM have this mode for 16 bits
    if image.mode == "F" or signed:
        kind = "signed or 32-bit" if signed else "floating-point"
        raise FlowgradError(f"{path} holds {kind} pixels, whose range is unknown. Save it with 8 bits.")
    if image.width * image.height > PIXEL_LIMIT:
        raise FlowgradError(_too_large(path, f" {image.width} x {image.height},"))


def _too_large(path: Named, size: str = "") -> str:
    return f"{path} has too many pixels:{size} at most {PIXEL_LIMIT} are read. Scale it down first."


def _decoded(image: Image.Image, source: Path | BinaryIO) -> Photo:
    kind = "JPEG" if image.format == "MPO" else image.format or ""
    pixels = _in_kept_mode(upright(image))
    pixels.info.clear()  # Pillow would write it again, whatever became of the pixels
    return Photo(
        pixels,
        kind,
        exif=exif_bytes(image),
        icc=image.info.get("icc_profile") or b"",
        xmp=xmp_bytes(image),
        dpi=dots_per_inch(image),
        jpeg=jpeg_options(image),
        lossless=kind == "WEBP" and is_lossless(source),
        lower=lower_bits(source) if kind == "PNG" else None,
    )


def _in_kept_mode(image: Image.Image) -> Image.Image:
    """An image in a mode that pixels can be added to, and as little changed as that allows."""
    if image.mode.startswith("I"):
        return Image.fromarray(np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16))
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in KEPT_MODES else image.convert("RGB")


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
    except _TAG_ERRORS:
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


def lower_bits(source: Path | BinaryIO) -> Image.Image | None:
    """The lower 8 bits of a PNG with 16 for each colour, upright; None for any other."""
    with open_lower(source) as image:
        return upright(image) if image else None


def to_tensor(images: Sequence[Image.Image]) -> "torch.Tensor":
    """Return RGB images of one size as (B, 3, H, W) float32 in [-1, 1], on the CPU."""
    import torch

    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_images(tensor: "torch.Tensor") -> list[Image.Image]:
    """Return (B, 3, H, W) in [-1, 1] as RGB images; values beyond are clipped, and rounded to 8 bits."""
    scaled = tensor.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return [Image.fromarray(pixels) for pixels in scaled.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()]
