"""Strokes, and masks with words, as they are read and checked before torch is imported."""

from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from directions.file.texts import check_texts
from directions.photo.reading import read_photo
from flowgrad.errors import UsageError
from flowgrad.guidance.contrast import Contrast
from flowgrad.images import TRANSPARENT, to_rgb

COVERED = 0.5  # of white, from which a pixel is in a mask
SAME_SHAPE = 0.02  # by how much the logarithms of two ratios of sides may differ


@dataclass(frozen=True, eq=False)
class Strokes:
    """A painting of a model's size, what it was before, and what the person who made it may want to know."""

    image: Image.Image
    size: tuple[int, int]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Masked:
    """Words for a part of a painting: a mask (H, W) in [0, 1] of the model's size, and where it was read.

    words: as they were written, for a model that reads them itself; target: as a guide raises them.
    """

    mask: np.ndarray
    words: str
    target: Contrast
    path: Path | None = None


def read_strokes(path: Path, size: int) -> Strokes:
    """Read a painting, upright, and make strokes of it as `to_strokes` does.

    There is a warning where it is not square, or has transparent parts. Raises UsageError where there is no file, else
    as `read_photo`.
    """
    pixels = _pixels(path)
    warnings = []
    if pixels.width != pixels.height:
        warnings.append(f"{path.name} is {pixels.width} x {pixels.height}: its central square is taken")
    if _is_transparent(pixels):
        warnings.append(f"{path.name} has transparent parts, which are taken as white paint: fill them with colour")
    strokes = to_strokes(pixels, size, path.name)
    return Strokes(strokes.image, strokes.size, (*warnings, *strokes.warnings))


def to_strokes(pixels: Image.Image, size: int, name: str) -> Strokes:
    """The central square of a painting in RGB, of size x size; what is transparent is white paint.

    Of one colour alone there is a warning.
    """
    rgb = to_rgb(pixels)
    flat = not np.ptp(np.asarray(rgb), axis=(0, 1)).any()
    warnings = (f"{name} has one colour alone: there is little to follow",) if flat else ()
    return Strokes(_square(rgb, size), pixels.size, warnings)


def read_region(written: str, strokes: Strokes, subject: str) -> Masked:
    """Read MASK="words": white pixels of the image MASK are where the words apply; transparent ones are not.

    Raises UsageError for what is not written so, for a mask of another shape than the painting, and for one that covers
    nothing, or all of it: that is what --text is for. Raises as `read_photo` too.
    """
    name, equals, words = written.rpartition("=")
    if not (equals and name.strip() and words.strip()):
        raise UsageError(f'a region needs a mask and words, like mouth.png="a smiling mouth"; got {written!r}')
    path, (target, _) = Path(name.strip()), check_texts(words, None, (), subject)
    pixels = _pixels(path)
    across, down = strokes.size
    if abs(log(pixels.width * down / (pixels.height * across))) > SAME_SHAPE:
        raise UsageError(
            f"the mask {path} is {pixels.width} x {pixels.height} and the painting {across} x {down}: "
            "paint it over the painting itself, in the same shape"
        )
    return Masked(to_mask(_on_black(pixels), strokes.image.width, f"the mask {path}"), words.strip(), target, path)


def to_mask(grey: Image.Image, size: int, name: str) -> np.ndarray:
    """(size, size) in [0, 1]: the central square of a grey image, whose white is inside.

    Raises UsageError for one that covers nothing, or all of the painting: that is what a text is for.
    """
    levels = np.asarray(_square(grey, size), dtype=np.float32) / 255
    if not (levels >= COVERED).any():
        raise UsageError(f"{name} covers nothing: paint the region in white, on black")
    if (levels >= COVERED).all():
        raise UsageError(f"{name} covers the whole painting: leave it out, and give its words as the text")
    return levels


def _pixels(path: Path) -> Image.Image:
    """The pixels of an image's file. Raises UsageError where there is no file; otherwise as `read_photo`."""
    if path.is_dir() or not path.exists():
        raise UsageError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: name an image file")
    return read_photo(path).pixels


def _is_transparent(pixels: Image.Image) -> bool:
    return pixels.mode in TRANSPARENT and int(np.asarray(pixels.getchannel("A")).min()) < 255


def _square(image: Image.Image, size: int) -> Image.Image:
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def _on_black(pixels: Image.Image) -> Image.Image:
    """8-bit grey; what is transparent is black."""
    if pixels.mode not in TRANSPARENT:
        return pixels.convert("RGB").convert("L")
    rgba = pixels.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("L")
