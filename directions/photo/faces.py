"""Photos at a model's size: their faces cut out as the model's own photos are, or the whole photo resized.

Faces are found by dlib, of the extra `faces`, which is imported when first used. A photo in which none is found is left
alone: nothing but `align="never"` takes it as it is.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from PIL import Image

from directions.photo.crop import Place
from directions.photo.detection import detector, find_faces, overlap
from directions.photo.landmarks import ALIGNED_BOX, CHIP_PADDING, CHIP_SIZE, Box, Face, look, predictor
from directions.photo.reading import Align, Photo, read_photo
from directions.photo.sources import Source
from flowgrad.errors import FlowgradError, UsageError

_TURNED = 0.5  # of `turn`

_ALIGNED_OVERLAP = 0.5  # intersection over union of a found box with that one
_ALIGNED_WITHIN = 0.05  # of the side: 98 of 100 aligned photos stay below, every one shifted by 0.06 is above

_SMALLEST = 32  # pixels: a face that has fewer across is not edited
_SMALL = 0.75  # of the model's size: of a face that has fewer pixels, the edit may show
NO_FACE_REMEDY = "Use a photo with a larger, frontal face, or --align never."
_MISSING_EXTRA = "finding faces needs dlib, which is not installed. Run: pip install 'flowgrad[faces]'"


@dataclass(frozen=True)
class Prepared:
    """A face, or a photo, at the model's size: `image` (size x size, RGB), and where it lies in the photo.

    `warning` says what the user may want to know, or is None. unconfirmed: no face was found in a photo of the model's
    own size, so that it is an aligned face only if the model knows it; see `directions.apply.familiarity`.
    """

    image: Image.Image
    place: Place
    warning: str | None = None
    unconfirmed: bool = False


@dataclass(frozen=True)
class Faces:
    """What is edited of a photo: `crops`, the largest first, and how many faces are too small for the model.

    searched: whether faces were looked for; otherwise the one crop is the photo itself.
    """

    crops: tuple[Prepared, ...] = ()
    too_small: int = 0
    searched: bool = True

    @property
    def lack(self) -> str:
        """Why nothing can be edited, where there is no crop or an unconfirmed one that the model does not know."""
        if not self.too_small:
            return "no face was found in it"
        return "its face is too small" if self.too_small == 1 else f"its {self.too_small} faces are too small"


@dataclass(frozen=True, eq=False)
class Read:
    """A photo that was read: its file's bytes and their SHA-256, its pixels, and its faces."""

    content: bytes
    sha256: str
    photo: Photo
    faces: Faces


class Asked(NamedTuple):
    """A photo to be read, unless its file still has the SHA-256 `known`."""

    source: Source
    known: str = ""


def read_faces(
    source: Source, size: int, align: Align = "auto", face: int | None = None, enough: int | None = None
) -> Read:
    """Read a photo, see `read_photo`, and prepare its faces. Raises FlowgradError, which names the source."""
    return _prepared(source, source.read(), size, align, face, enough)


def read_changed(
    asked: Asked, size: int, align: Align = "auto", face: int | None = None, enough: int | None = None
) -> Read | None:
    """As `read_faces`; None if its file is known, of which then nothing is decoded."""
    content = asked.source.read()
    if asked.known and hashlib.sha256(content).hexdigest() == asked.known:
        return None
    return _prepared(asked.source, content, size, align, face, enough)


def _prepared(source: Source, content: bytes, size: int, align: Align, face: int | None, enough: int | None) -> Read:
    photo = read_photo(source, io.BytesIO(content), enough)
    try:
        return Read(content, hashlib.sha256(content).hexdigest(), photo, prepare_faces(photo.rgb, size, align, face))
    except FlowgradError as error:
        raise type(error)(f"{source}: {error}") from error


def prepare(photo: Image.Image, size: int, align: Align = "auto") -> Prepared:
    """Bring an RGB photo to `size` x `size` as the model's own photos are: its largest face, if it has several.

    See `prepare_faces`. Raises FlowgradError if there is no face in the photo that can be edited.
    """
    return largest_of(prepare_faces(photo, size, align))


def largest_of(faces: Faces) -> Prepared:
    """The largest of a photo's faces, which says so if there are others. Raises FlowgradError if there is none."""
    if not faces.crops:
        raise FlowgradError(without_a_face(faces.lack))
    largest, count = faces.crops[0], len(faces.crops) + faces.too_small
    if count == 1:
        return largest
    return replace(
        largest, warning="; ".join(filter(None, (f"{count} faces found, the largest was taken", largest.warning)))
    )


def without_a_face(lack: str) -> str:
    """The message that a photo cannot be edited, for what it lacks; see `Faces.lack`."""
    return f"{lack}. {NO_FACE_REMEDY}"


def prepare_faces(photo: Image.Image, size: int, align: Align = "auto", face: int | None = None) -> Faces:
    """The faces of an RGB photo at `size` x `size`, cut out as dlib's aligned chips are; or `face` alone.

    "auto" takes a photo as it is if it is aligned already: the face found in it says so, or it has the model's size,
    and then the crop is `unconfirmed`. "always" raises FlowgradError if there is no face that can be edited. "never"
    looks for none: it resizes a square photo and crops any other to its central square. `face` is counted from the left
    among those that are not too small.
    Raises UsageError for one that is not there, FlowgradError without the extra `faces`.
    """
    if align == "never":
        if face is not None:
            needs = "a model of faces, and --align other than never"
            raise UsageError(f"--face {face} needs {needs}. Otherwise leave it out.")
        return Faces((_fit(photo, size),), searched=False)
    faces = _searched(photo, size, align == "auto")
    if align == "always" and not faces.crops:
        raise FlowgradError(without_a_face(faces.lack))
    return faces if face is None or not faces.crops else _alone(faces, face)


def _searched(photo: Image.Image, size: int, as_it_is: bool) -> Faces:
    """The faces of a photo, of which one that is aligned already may be taken `as_it_is`."""
    whole, own_size = Faces((_fit(photo, size, unconfirmed=True),)), photo.size == (size, size)
    if as_it_is and own_size and not available():
        return whole
    require()
    boxes = find_faces(photo)
    if as_it_is and boxes and is_aligned(photo, boxes[0]):
        return Faces((_fit(photo, size, oddity(look(photo, boxes[0]), photo.width, size)),))
    seen = [look(photo, box) for box in boxes]
    large = [face for face in seen if face.side >= _SMALLEST]
    if as_it_is and own_size and not large:
        return whole
    return Faces(tuple(_aligned(face, size) for face in large), len(seen) - len(large))


def _alone(faces: Faces, number: int) -> Faces:
    """One of a photo's faces, counted from the left from 1 on."""
    count = len(faces.crops)
    if not 1 <= number <= count:
        raise UsageError(f"--face {number} is not there (faces found: {count}). Count them from the left, from 1 on.")
    return replace(faces, crops=(faces.crops[from_left([crop.place for crop in faces.crops])[number - 1]],))


def from_left(places: Sequence[Place]) -> list[int]:
    """The places' numbers, those further left first, as `--face` counts them."""
    return sorted(range(len(places)), key=lambda i: sum(x for x, _ in places[i].corners))


def _aligned(face: Face, size: int) -> Prepared:
    chip, place = cut_out(face, max(CHIP_SIZE, size))
    return Prepared(_resize(chip, size), place, oddity(face, place.side, size))


def _fit(photo: Image.Image, size: int, warning: str | None = None, unconfirmed: bool = False) -> Prepared:
    """The central square of a photo, which of a square one is all of it."""
    place = Place.centre(*photo.size)
    return Prepared(_resize(photo.crop(place.box(*photo.size)), size), place, warning, unconfirmed)


def _resize(image: Image.Image, size: int) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def available() -> bool:
    """Return whether the extra `faces` is installed."""
    return find_spec("dlib") is not None and find_spec("face_recognition_models") is not None


def require() -> None:
    """Raise FlowgradError unless the extra `faces` is installed."""
    if not available():
        raise FlowgradError(_MISSING_EXTRA)


def warm_up() -> None:
    """Load dlib's models, which takes a second, before the first photo is there."""
    detector(), predictor()


def is_aligned(photo: Image.Image, box: Box) -> bool:
    """Return whether aligning a photo at the face in `box` would change next to nothing.

    Its landmarks are placed as if it were aligned; if it is, the chip cut out by them is the photo itself.
    """
    side = photo.width
    aligned = tuple(fraction * side for fraction in ALIGNED_BOX)
    if side != photo.height or overlap(box, aligned) < _ALIGNED_OVERLAP:
        return False
    wanted = np.array([(0, 0), (side, 0), (side, side), (0, side)])
    return bool(np.linalg.norm(look(photo, aligned).corners - wanted, axis=1).mean() < _ALIGNED_WITHIN * side)


def cut_out(face: Face, size: int = CHIP_SIZE) -> tuple[Image.Image, Place]:
    """Return a face upright and centred, size x size, and where in the photo it was cut out.

    It is dlib's `get_face_chip` with the padding of the model's photos.
    """
    import dlib

    chip = Image.fromarray(dlib.get_face_chip(face.pixels, face.shape, size=size, padding=CHIP_PADDING))
    corners = face.corners
    centre = corners.mean(0)
    edges = centre + (corners - centre) * size / (size - 1) + 0.5 / face.scale  # dlib's are the centres of pixels
    a, b, c, d = ((float(x), float(y)) for x, y in edges)
    return chip, Place((a, b, c, d), "face")


def oddity(face: Face, side: float, size: int) -> str | None:
    """What may go wrong with a face `side` pixels wide, as it is cut out, in a model of `size` pixels; or None."""
    reasons = []
    if side < _SMALL * size:
        reasons.append(f"its face is small ({side:.0f} pixels, the model has {size})")
    if abs(face.turn) > _TURNED:
        reasons.append("its face is turned away")
    return f"{' and '.join(reasons)}: the edit may not fit" if reasons else None
