"""Photos: found, read whatever way they are stored, and turned into tensors and back."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from directions.photo import metadata
from directions.photo.png16 import lower_bits
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path, refuse_existing
from flowgrad.images import to_rgb

if TYPE_CHECKING:
    import torch

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".heic", ".heif", ".avif")
SAVED_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
# What is decoded: no format that starts a program, asks the network, or has no use for photos.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "HEIF", "AVIF")
PIXEL_LIMIT = 120_000_000  # what a large camera makes; a file that unpacks to more is an accident or an attack
JPEG_QUALITY = 95
KEPT_MODES = ("RGB", "RGBA", "L", "LA", "CMYK", "I;16")

_ALPHA_MODES = ("PA", "La", "RGBa")
_PHOTOMETRIC, _YCBCR = 0x0106, 6  # TIFF's tag of what the numbers of a pixel mean, and one of its values
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


def find_photos(paths: Iterable[Path]) -> list[Path]:
    """Return the photos that `paths` name: files as given, folders as their images by name; none twice.

    Raises UsageError for a path that does not exist, a folder without images, and no path at all.
    """
    photos: dict[Path, Path] = {}
    for path in paths:
        for photo in _photos_at(path):
            photos.setdefault(photo.resolve(), photo)
    if not photos:
        raise UsageError("no photo was named. Give image files, or folders of them.")
    return list(photos.values())


def _photos_at(path: Path) -> list[Path]:
    if not path.exists():
        raise UsageError(f"{path} does not exist. Name image files, or folders of them.")
    if not path.is_dir():
        return [path]
    try:
        photos = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()]
    except OSError as error:
        raise FlowgradError(f"cannot read {path}: {error.strerror}. Check its permissions.") from error
    photos = [photo for photo in photos if not photo.name.startswith(".")]
    if not photos:
        raise UsageError(f"{path} holds no image ({', '.join(SUFFIXES)}). Name another folder, or the files.")
    return photos


def read_photo(path: Path, content: BinaryIO | None = None) -> Photo:
    """Read a photo, from `content`, if given, under the name `path`.

    Raises FlowgradError for a file that is missing, no image, damaged, over PIXEL_LIMIT, or of pixels whose range is
    unknown (floating-point, or a TIFF's of 32 bits).
    """
    source = content or path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; the limit of pixels below is our own
            with _open(source) as image:
                _check_pixels(path, image)
                return _decoded(image, source)
    except UnidentifiedImageError as error:
        remedy = _MISSING_HEIC if path.suffix.lower() in (".heic", ".heif") else "Convert it to JPEG or PNG."
        raise FlowgradError(f"{path} is not an image of a kind that can be read. {remedy}") from error
    except Image.DecompressionBombError as error:
        raise FlowgradError(_too_large(path)) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise FlowgradError(f"cannot read {path}: {error.strerror}. Check the name and its permissions.") from error
    except metadata.PILLOW_ERRORS as error:
        remedy = "Copy it again from where it came from."
        raise FlowgradError(f"{path} is a damaged or truncated image ({error}). {remedy}") from error


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


def _check_pixels(path: Path, image: Image.Image) -> None:
    signed = image.mode == "I" and image.format == "TIFF"  # PNG and PPM have this mode for 16 bits
    if image.mode == "F" or signed:
        kind = "signed or 32-bit" if signed else "floating-point"
        raise FlowgradError(f"{path} holds {kind} pixels, whose range is unknown. Save it with 8 bits.")
    if image.width * image.height > PIXEL_LIMIT:
        raise FlowgradError(_too_large(path, f" {image.width} x {image.height},"))


def _too_large(path: Path, size: str = "") -> str:
    return f"{path} has too many pixels:{size} at most {PIXEL_LIMIT} are read. Scale it down first."


def _decoded(image: Image.Image, source: Path | BinaryIO) -> Photo:
    kind = "JPEG" if image.format == "MPO" else image.format or ""
    pixels = _in_kept_mode(metadata.upright(image))
    pixels.info.clear()  # Pillow would write it again, whatever became of the pixels
    return Photo(
        pixels,
        kind,
        exif=metadata.exif_bytes(image),
        icc=image.info.get("icc_profile") or b"",
        xmp=metadata.xmp_bytes(image),
        dpi=metadata.dots_per_inch(image),
        jpeg=metadata.jpeg_options(image),
        lossless=kind == "WEBP" and metadata.is_lossless(source),
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


def to_tensor(images: Sequence[Image.Image]) -> "torch.Tensor":
    """Return RGB images of one size as (B, 3, H, W) float32 in [-1, 1], on the CPU."""
    import torch

    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_images(tensor: "torch.Tensor") -> list[Image.Image]:
    """Return (B, 3, H, W) in [-1, 1] as RGB images; values beyond are clipped, and rounded to 8 bits."""
    scaled = tensor.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return [Image.fromarray(pixels) for pixels in scaled.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def save_image(image: Image.Image, path: Path, overwrite: bool = False) -> Path:
    """Write an image as its suffix says. Returns the path. Raises as `new_image_file`."""
    with new_image_file(path, overwrite) as temporary:
        image.convert("RGB").save(temporary, quality=JPEG_QUALITY)  # PNG knows no quality and ignores it
    return path


@contextmanager
def new_image_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary file that becomes `path`, see `atomic_path`.

    Raises UsageError for a suffix that is not written, and for a file that exists (unless `overwrite`).
    """
    if path.suffix.lower() not in SAVED_SUFFIXES:
        raise UsageError(f"{path.name} does not say which kind of image. Let it end in {', '.join(SAVED_SUFFIXES)}.")
    refuse_existing(path, overwrite)
    with atomic_path(path) as temporary:
        yield temporary
