"""Photos: found, read whatever way they are stored, brought to the model's size, turned to tensors, and saved."""

import hashlib
import signal
import struct
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from directions.photo import faces
from directions.photo.crop import Place
from directions.photo.faces import Face
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

ORIENTATION = 0x0112  # EXIF's tag
PHOTOMETRIC, YCBCR = 0x0106, 6  # TIFF's tag of what the numbers of a pixel mean, and one of its values
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_MISSING_EXTRA = "not aligned, its centre was taken: finding faces needs pip install 'flowgrad[faces]'"
_MISSING_HEIC = "Run: pip install 'flowgrad[heic]', or convert it to JPEG."

Align = Literal["auto", "always", "never"]
# Everything Pillow's decoders raise on damaged files, beside its own errors (which are OSErrors).
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, struct.error)


@dataclass(frozen=True)
class Prepared:
    """A photo at the model's size: `image` (size x size, RGB) and how it was made.

    `face` is where the photo's face was found, in the photo's own pixels (None: not looked for, or not found);
    `warning` says what the user may want to know, or is None; `place` is where the image lies in the photo.
    """

    image: Image.Image
    how: Literal["aligned", "resized", "centre crop"]
    face: Face | None
    warning: str | None
    place: Place


def find_photos(paths: Iterable[Path]) -> list[Path]:
    """Return the photos that `paths` name: files as given, folders as their images by name; none twice.

    Raises UsageError for a path that does not exist, a folder without images, and no path at all.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        for photo in _photos_at(path):
            found.setdefault(photo.resolve(), photo)
    if not found:
        raise UsageError("no photo was named. Give image files, or folders of them.")
    return list(found.values())


def read_photo(path: Path) -> Image.Image:
    """Return a photo upright, as 8-bit RGB; transparency becomes white.

    Raises FlowgradError for a file that is missing, no image, damaged, or over PIXEL_LIMIT.
    """
    with open_image(path) as (_, upright):
        return to_rgb(upright)


@contextmanager
def open_image(path: Path, content: BinaryIO | None = None) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Yield an image as its file has it, and turned upright; from `content`, if given, under the name `path`.

    Raises FlowgradError for a file that is missing, no image, damaged, over PIXEL_LIMIT, or of pixels whose range is
    unknown (floating-point, or a TIFF's of 32 bits).
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; the limit of pixels below is our own
            with _open(content or path) as image:
                _check_pixels(path, image)
                yield image, upright(image)
    except UnidentifiedImageError as error:
        remedy = _MISSING_HEIC if path.suffix.lower() in (".heic", ".heif") else "Convert it to JPEG or PNG."
        raise FlowgradError(f"{path} is not an image of a kind that can be read. {remedy}") from error
    except Image.DecompressionBombError as error:
        raise FlowgradError(_too_large(path)) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise FlowgradError(f"cannot read {path}: {error.strerror}. Check the name and its permissions.") from error
    except _DECODER_ERRORS as error:
        remedy = "Copy it again from where it came from."
        raise FlowgradError(f"{path} is a damaged or truncated image ({error}). {remedy}") from error


def _open(source: Path | BinaryIO) -> Image.Image:
    """Open an image. Of YCbCr without compression Pillow would read four bytes a pixel; libtiff reads three."""
    image = Image.open(source, formats=_formats())
    if image.format != "TIFF" or image.getexif().get(PHOTOMETRIC) != YCBCR or image.tile[0].codec_name == "libtiff":
        return image
    before, TiffImagePlugin.READ_LIBTIFF = TiffImagePlugin.READ_LIBTIFF, True
    try:
        return Image.open(source, formats=_formats())
    finally:
        TiffImagePlugin.READ_LIBTIFF = before


def upright(image: Image.Image) -> Image.Image:
    """A copy of an image turned as its EXIF says; other than Pillow's own, it writes no EXIF, which can fail."""
    image.load()
    turn = _TURNS.get(image.getexif().get(ORIENTATION, 1))
    return image.copy() if turn is None else image.transpose(turn)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The formats that can be read here; HEIC if the extra `heic` is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def prepare(photo: Image.Image, size: int, align: Align = "auto") -> Prepared:
    """Bring an RGB photo to `size` x `size` as the model's own photos are: its largest face, if it has several.

    "always" cuts it out as dlib's aligned chips are, and raises FlowgradError if there is none.
    "never" resizes a square photo and crops any other to its central square. "auto" aligns unless the photo is
    aligned already, and falls back to "never" with a warning if there is no face or the extra `faces` is missing.
    """
    return largest_of(prepare_faces(photo, size, align))


def largest_of(found: Sequence[Prepared]) -> Prepared:
    """The largest of a photo's faces, which says so if there are others."""
    if len(found) == 1:
        return found[0]
    told = filter(None, (f"{len(found)} faces found, the largest was taken", found[0].warning))
    return replace(found[0], warning="; ".join(told))


def prepare_faces(
    photo: Image.Image, size: int, align: Align = "auto", face: int | None = None
) -> tuple[Prepared, ...]:
    """Every face of an RGB photo as `prepare` does it, the largest first; or `face` alone, counted from the left.

    A photo without one, or that is not looked at for faces, is one image. Raises UsageError for a face that is not
    there, FlowgradError as `prepare`.
    """
    if align == "never" or (align == "auto" and not faces.available()):
        _refuse_choice(face, align)
        missing = align == "auto" and photo.width != photo.height
        return (_fit(photo, size, _MISSING_EXTRA if missing else None),)
    found = faces.find_faces(photo)
    if face is not None:
        found = [_chosen(found, face)]
    if not found and align == "always":
        raise FlowgradError("no face found. Use a photo with a larger, frontal face, or --align never.")
    if not found:
        return (_fit(photo, size, "no face found, so it was not aligned"),)
    if align == "auto" and faces.is_aligned(photo, found[0]):
        return (replace(_fit(photo, size, faces.oddity(found[0], photo.width, size)), face=found[0]),)
    return tuple(_aligned(photo, each, size) for each in found)


def _refuse_choice(face: int | None, align: Align) -> None:
    """Raise UsageError for a face that is wanted where none is looked for."""
    if face is not None:
        reason = "is not looked for, as photos are not aligned" if align == "never" else "cannot be looked for"
        remedy = "Leave out --face" + ("." if align == "never" else ", or run: pip install 'flowgrad[faces]'")
        raise UsageError(f"--face {face} {reason}. {remedy}")


def prepare_file(path: Path, size: int, align: Align = "auto") -> Prepared:
    """Read a photo and `prepare` it. Raises FlowgradError, which names the file."""
    with _naming(path):
        return prepare(read_photo(path), size, align)


def prepare_faces_file(path: Path, size: int, align: Align = "auto", face: int | None = None) -> tuple[Prepared, ...]:
    """Read a photo and prepare its faces. Raises FlowgradError, which names the file."""
    with _naming(path):
        return prepare_faces(read_photo(path), size, align, face)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FlowgradError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _chosen(found: Sequence[Face], number: int) -> Face:
    """The face of a number, counted from the left. Raises UsageError if there are fewer."""
    if not 1 <= number <= len(found):
        there = {0: "no face", 1: "one face"}.get(len(found), f"{len(found)} faces")
        raise UsageError(f"--face {number}: {there} found. Count them from the left, from 1 on.")
    return sorted(found, key=lambda face: face.box[0] + face.box[2])[number - 1]


def _aligned(photo: Image.Image, face: Face, size: int) -> Prepared:
    """The face cut out as dlib's chips are."""
    chip, place = faces.cut_out(photo, face, max(faces.CHIP_SIZE, size))
    return Prepared(_resize(chip, size), "aligned", face, faces.oddity(face, place.side, size), place)


@contextmanager
def process_beside(align: Align) -> Iterator[Executor | None]:
    """A process for `prepare_file`: loading dlib's models and importing torch take seconds each, so do both at once.

    None where there is nothing to gain, or nothing safe: no faces to find, torch and its threads there already, or
    a system that cannot fork.
    """
    safe = sys.platform == "linux" and "torch" not in sys.modules
    if align == "never" or not faces.available() or not safe:
        yield None
        return
    executor = ProcessPoolExecutor(1, get_context("fork"), initializer=ignore_interrupts)
    try:
        executor.submit(faces.warm_up)
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)  # photos that still wait are not prepared after an interruption


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the process that started this one: the command itself says that it was interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def to_tensor(images: Sequence[Image.Image]) -> "torch.Tensor":
    """Return RGB images of one size as (B, 3, H, W) float32 in [-1, 1], on the CPU."""
    import torch

    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_images(tensor: "torch.Tensor") -> list[Image.Image]:
    """Return (B, 3, H, W) in [-1, 1] as RGB images; values beyond are clipped, and rounded to 8 bits."""
    scaled = tensor.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    pixels = scaled.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [Image.fromarray(each) for each in pixels]


def photo_hash(path: Path) -> str:
    """Return the first 16 hex digits of the SHA-256 of a file: which photo it was, without keeping it."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise FlowgradError(f"cannot read {path}: {error.strerror}. Check the name and its permissions.") from error


def save_image(image: Image.Image, path: Path, overwrite: bool = False) -> Path:
    """Write an image as its suffix says (PNG, JPEG, WebP). Returns the path.

    Raises UsageError for another suffix and for a file that exists (unless `overwrite`).
    """
    path = Path(path)
    if path.suffix.lower() not in SAVED_SUFFIXES:
        raise UsageError(f"{path.name} does not say which kind of image. Let it end in {', '.join(SAVED_SUFFIXES)}.")
    refuse_existing(path, overwrite)
    with atomic_path(path) as temporary:
        image.convert("RGB").save(temporary, quality=JPEG_QUALITY)  # PNG knows no quality and ignores it
    return path


def _photos_at(path: Path) -> list[Path]:
    if not path.exists():
        raise UsageError(f"{path} does not exist. Name image files, or folders of them.")
    if not path.is_dir():
        return [path]
    try:
        photos = [each for each in sorted(path.iterdir()) if each.suffix.lower() in SUFFIXES and each.is_file()]
    except OSError as error:
        raise FlowgradError(f"cannot read {path}: {error.strerror}. Check its permissions.") from error
    photos = [each for each in photos if not each.name.startswith(".")]
    if not photos:
        raise UsageError(f"{path} holds no image ({', '.join(SUFFIXES)}). Name another folder, or the files.")
    return photos


def _check_pixels(path: Path, image: Image.Image) -> None:
    signed = image.mode == "I" and image.format == "TIFF"  # PNG and PPM have this mode for 16 bits
    if image.mode == "F" or signed:
        kind = "signed or 32-bit" if signed else "floating-point"
        raise FlowgradError(f"{path} holds {kind} pixels, whose range is unknown. Save it with 8 bits.")
    if image.width * image.height > PIXEL_LIMIT:
        raise FlowgradError(_too_large(path, f" {image.width} x {image.height},"))


def _too_large(path: Path, told: str = "") -> str:
    return f"{path} has too many pixels:{told} at most {PIXEL_LIMIT} are read. Scale it down first."


def _fit(photo: Image.Image, size: int, warning: str | None) -> Prepared:
    """Resize a square photo, and the central square of any other."""
    if photo.width == photo.height:
        return Prepared(_resize(photo, size), "resized", None, warning, Place.whole(*photo.size))
    place = Place.centre(*photo.size)
    return Prepared(_resize(photo.crop(place.box(*photo.size)), size), "centre crop", None, warning, place)


def _resize(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.LANCZOS)
