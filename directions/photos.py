"""Photos: found, read whatever way they are stored, brought to the model's size, turned to tensors, and saved."""

import hashlib
import signal
import struct
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from directions import faces
from directions.direction import refuse_existing
from directions.faces import Face
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path

if TYPE_CHECKING:
    import torch

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
SAVED_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PIXEL_LIMIT = 120_000_000  # what a large camera makes; a file that unpacks to more is an accident or an attack
JPEG_QUALITY = 95

_MISSING_EXTRA = "not aligned, its centre was taken: finding faces needs pip install 'flowgrad[faces]'"

Align = Literal["auto", "always", "never"]
# Everything Pillow's decoders raise on damaged files, beside its own errors (which are OSErrors).
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, struct.error)


@dataclass(frozen=True)
class Prepared:
    """A photo at the model's size: `image` (size x size, RGB) and how it was made.

    `face` is where the photo's face was found, in the photo's own pixels (None: not looked for, or not found);
    `warning` says what the user may want to know, or is None.
    """

    image: Image.Image
    how: Literal["aligned", "resized", "centre crop"]
    face: Face | None
    warning: str | None


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
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; the limit of pixels below is our own
            with Image.open(path) as image:
                _check_pixels(path, image)
                return _to_rgb(path, ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        remedy = "Convert it to JPEG or PNG."
        raise FlowgradError(f"{path} is not an image of a kind that can be read. {remedy}") from error
    except Image.DecompressionBombError as error:
        raise FlowgradError(_too_large(path)) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise FlowgradError(f"cannot read {path}: {error.strerror}. Check the name and its permissions.") from error
    except _DECODER_ERRORS as error:
        remedy = "Copy it again from where it came from."
        raise FlowgradError(f"{path} is a damaged or truncated image ({error}). {remedy}") from error


def prepare(photo: Image.Image, size: int, align: Align = "auto") -> Prepared:
    """Bring an RGB photo to `size` x `size` as the model's own photos are.

    "always" cuts out the largest face as dlib's aligned chips are, and raises FlowgradError if there is none.
    "never" resizes a square photo and crops any other to its central square. "auto" aligns unless the photo is
    aligned already, and falls back to "never" with a warning if there is no face or the extra `faces` is missing.
    """
    if align == "never":
        return _fit(photo, size, None)
    if align == "auto" and not faces.available():
        return _fit(photo, size, None if photo.width == photo.height else _MISSING_EXTRA)
    found = faces.find_faces(photo)
    if not found and align == "always":
        raise FlowgradError("no face found. Use a photo with a larger, frontal face, or --align never.")
    if not found:
        return _fit(photo, size, "no face found, so it was not aligned")
    warning = f"{len(found)} faces found, the largest was taken" if len(found) > 1 else None
    if align == "auto" and faces.is_aligned(photo, found[0]):
        return Prepared(_resize(photo, size), "resized", found[0], warning)
    chip = faces.crop_face(photo, found[0], max(faces.CHIP_SIZE, size))
    return Prepared(_resize(chip, size), "aligned", found[0], warning)


def prepare_file(path: Path, size: int, align: Align = "auto") -> Prepared:
    """Read a photo and `prepare` it. Raises FlowgradError, which names the file."""
    photo = read_photo(path)
    try:
        return prepare(photo, size, align)
    except FlowgradError as error:
        raise FlowgradError(f"{path}: {error}") from error


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
    executor = ProcessPoolExecutor(1, get_context("fork"), initializer=_start_beside)
    try:
        executor.submit(faces.warm_up)
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)  # photos that still wait are not prepared after an interruption


def _start_beside() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command itself says that it was interrupted


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
    if image.width * image.height > PIXEL_LIMIT:
        raise FlowgradError(_too_large(path, f" {image.width} x {image.height},"))


def _too_large(path: Path, told: str = "") -> str:
    return f"{path} has too many pixels:{told} at most {PIXEL_LIMIT} are read. Scale it down first."


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    """Return any mode of Pillow's as 8-bit RGB."""
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip rather than scale
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode == "F":
        raise FlowgradError(f"{path} holds floating-point pixels, whose range is unknown. Save it with 8 bits.")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _fit(photo: Image.Image, size: int, warning: str | None) -> Prepared:
    """Resize a square photo, and the central square of any other."""
    if photo.width == photo.height:
        return Prepared(_resize(photo, size), "resized", None, warning)
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.crop((left, top, left + side, top + side))
    return Prepared(_resize(square, size), "centre crop", None, warning)


def _resize(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.LANCZOS)
