"""Photos at a model's size: their faces cut out as the model's own photos are, or the whole photo resized.

Faces are found by dlib, of the extra `faces`, which is imported when first used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from directions.photo.crop import Place
from directions.photo.reading import Align, Photo, read_photo
from flowgrad.errors import FlowgradError, UsageError

CHIP_SIZE, CHIP_PADDING = 200, 0.2  # get_face_chip(size=200, padding=0.2), as the model's photos were cut

# Sides (pixels) at which faces are looked for, with margins added: the detector wants faces of 80 pixels or more, and
# misses some that fill the picture. Coarse first: that is fast, and finds the largest face.
_LOOKS = ((320, 0.0), (320, 0.2), (640, 0.0), (1280, 0.0))
_TURNED = 0.5  # of `turn`
_FACE_SIDE = 200  # pixels a face should have when its landmarks are placed, since these are whole pixels

# Where the detector sees the face of an aligned photo, in fractions of the side: the mean over UTKFace's test photos.
_ALIGNED_BOX = (0.041, 0.034, 0.957, 0.950)
_ALIGNED_OVERLAP = 0.5  # intersection over union of a found box with that one
_ALIGNED_WITHIN = 0.05  # of the side: 98 of 100 aligned photos stay below, every one shifted by 0.06 is above

_MISSING_EXTRA = "not aligned, its centre was taken: finding faces needs pip install 'flowgrad[faces]'"

Box = tuple[float, ...]  # left, top, right, bottom of a face in its photo


@dataclass(frozen=True)
class Prepared:
    """A face, or a photo, at the model's size: `image` (size x size, RGB), and where it lies in the photo.

    `warning` says what the user may want to know, or is None.
    """

    image: Image.Image
    place: Place
    warning: str | None = None


@dataclass(frozen=True, eq=False)
class Face:
    """The surroundings of a face at a good size, (h, w, 3) uint8, and `shape`: dlib's 68 landmarks in them.

    What is (x, y) there is origin + (x, y) / scale in the photo.
    """

    pixels: np.ndarray
    shape: Any
    origin: tuple[int, int]
    scale: float

    @property
    def corners(self) -> np.ndarray:
        """(4, 2): the corners of the chip that would be cut out, in the photo, clockwise from the upper left."""
        import dlib

        chip = dlib.get_face_chip_details(self.shape, CHIP_SIZE, CHIP_PADDING)
        half = np.array([chip.rect.width(), chip.rect.height()]) / 2
        cos, sin = math.cos(chip.angle), math.sin(chip.angle)
        signs, centre = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]), chip.rect.dcenter()
        corners = (signs * half) @ np.array([(cos, sin), (-sin, cos)]) + (centre.x, centre.y)
        return corners / self.scale + self.origin

    @property
    def turn(self) -> float:
        """How far it is turned, by its landmarks: 0 frontal, -1 and 1 the nose at an end of the jaw."""
        jaw_left, jaw_right, nose = (np.array([point.x, point.y]) for point in map(self.shape.part, (0, 16, 30)))
        across = jaw_right - jaw_left
        return float(2 * np.dot(nose - jaw_left, across) / max(np.dot(across, across), 1e-9) - 1)


def read_faces(
    path: Path, size: int, align: Align = "auto", face: int | None = None
) -> tuple[Photo, tuple[Prepared, ...]]:
    """Read a photo and prepare its faces. Raises FlowgradError, which names the file."""
    photo = read_photo(path)
    try:
        return photo, prepare_faces(photo.rgb, size, align, face)
    except FlowgradError as error:
        raise type(error)(f"{path}: {error}") from error


def prepare(photo: Image.Image, size: int, align: Align = "auto") -> Prepared:
    """Bring an RGB photo to `size` x `size` as the model's own photos are: its largest face, if it has several.

    "always" cuts it out as dlib's aligned chips are, and raises FlowgradError if there is none.
    "never" resizes a square photo and crops any other to its central square. "auto" aligns unless the photo is
    aligned already, and falls back to "never" with a warning if there is no face or the extra `faces` is missing.
    """
    return largest_of(prepare_faces(photo, size, align))


def largest_of(faces: Sequence[Prepared]) -> Prepared:
    """The largest of a photo's faces, which says so if there are others."""
    if len(faces) == 1:
        return faces[0]
    warnings = filter(None, (f"{len(faces)} faces found, the largest was taken", faces[0].warning))
    return replace(faces[0], warning="; ".join(warnings))


def prepare_faces(
    photo: Image.Image, size: int, align: Align = "auto", face: int | None = None
) -> tuple[Prepared, ...]:
    """Every face of an RGB photo as `prepare` does it, the largest first; or `face` alone, counted from the left.

    A photo without one, or that is not looked at for faces, is one image. Raises UsageError for a face that is not
    there, FlowgradError as `prepare`.
    """
    if align == "never" or (align == "auto" and not available()):
        if face is not None:
            needs = "a model of faces, --align other than never, and pip install 'flowgrad[faces]'"
            raise UsageError(f"--face {face} needs {needs}. Otherwise leave it out.")
        missing = align == "auto" and photo.width != photo.height
        return (_fit(photo, size, _MISSING_EXTRA if missing else None),)
    boxes = find_faces(photo)
    if face is not None:
        if not 1 <= face <= len(boxes):
            raise UsageError(
                f"--face {face} is not there (faces found: {len(boxes)}). Count them from the left, from 1 on."
            )
        boxes = [sorted(boxes, key=lambda box: box[0] + box[2])[face - 1]]
    if not boxes and align == "always":
        raise FlowgradError("no face found. Use a photo with a larger, frontal face, or --align never.")
    if not boxes:
        return (_fit(photo, size, "no face found, so it was not aligned"),)
    if align == "auto" and is_aligned(photo, boxes[0]):
        return (_fit(photo, size, oddity(look(photo, boxes[0]), photo.width, size)),)
    return tuple(_aligned(look(photo, box), size) for box in boxes)


def _aligned(face: Face, size: int) -> Prepared:
    chip, place = cut_out(face, max(CHIP_SIZE, size))
    return Prepared(_resize(chip, size), place, oddity(face, place.side, size))


def _fit(photo: Image.Image, size: int, warning: str | None) -> Prepared:
    """The central square of a photo, which of a square one is all of it."""
    place = Place.centre(*photo.size)
    return Prepared(_resize(photo.crop(place.box(*photo.size)), size), place, warning)


def _resize(image: Image.Image, size: int) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def available() -> bool:
    """Return whether the extra `faces` is installed."""
    return find_spec("dlib") is not None and find_spec("face_recognition_models") is not None


def require() -> None:
    """Raise FlowgradError unless the extra `faces` is installed."""
    if not available():
        raise FlowgradError("looking at faces needs dlib, which is not installed. Run: pip install 'flowgrad[faces]'")


def warm_up() -> None:
    """Load dlib's models, which takes a second, before the first photo is there."""
    _detector(), _predictor()


@lru_cache(maxsize=1)
def _detector() -> Any:
    import dlib

    return dlib.get_frontal_face_detector()


@lru_cache(maxsize=1)
def _predictor() -> Any:
    import dlib
    import face_recognition_models

    return dlib.shape_predictor(face_recognition_models.pose_predictor_model_location())


def find_faces(photo: Image.Image) -> list[Box]:
    """Return where the faces of an RGB photo are, the largest first. Raises FlowgradError without the extra `faces`."""
    require()
    longest = max(photo.size)
    for side, margin in _LOOKS:
        if side > _LOOKS[0][0] and side > 2 * longest:  # enlarging it further shows nothing new
            break
        boxes = _detect(photo, side / longest, margin)
        if boxes:
            return boxes
    return []


def _detect(photo: Image.Image, scale: float, margin: float) -> list[Box]:
    """Return the boxes that the detector finds at `scale` with a margin (fraction of the side), the largest first."""
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    pad = round(margin * max(size))
    pixels = np.asarray(photo.resize(size, Image.Resampling.BICUBIC))
    squares = _detector()(np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="edge"), 0)
    squares = sorted(squares, key=lambda square: square.width(), reverse=True)
    edges = [(square.left(), square.top(), square.right() + 1, square.bottom() + 1) for square in squares]
    return [tuple((edge - pad) / scale for edge in box) for box in edges]


def is_aligned(photo: Image.Image, box: Box) -> bool:
    """Return whether aligning a photo at the face in `box` would change next to nothing.

    Its landmarks are placed as if it were aligned; if it is, the chip cut out by them is the photo itself.
    """
    import dlib

    side = photo.width
    aligned = tuple(fraction * side for fraction in _ALIGNED_BOX)
    ours, theirs = (dlib.drectangle(left, top, right - 1, bottom - 1) for left, top, right, bottom in (box, aligned))
    shared = ours.intersect(theirs).area()
    if side != photo.height or shared < _ALIGNED_OVERLAP * (ours.area() + theirs.area() - shared):
        return False
    wanted = np.array([(0, 0), (side, 0), (side, side), (0, side)])
    return bool(np.linalg.norm(look(photo, aligned).corners - wanted, axis=1).mean() < _ALIGNED_WITHIN * side)


def look(photo: Image.Image, box: Box) -> Face:
    """Look closely at the face in a box of an RGB photo."""
    import dlib

    width, height = box[2] - box[0], box[3] - box[1]
    left, top = max(0, round(box[0] - width)), max(0, round(box[1] - height))
    right, bottom = min(photo.width, round(box[2] + width)), min(photo.height, round(box[3] + height))
    near = photo.crop((left, top, right, bottom))
    scale = max(1.0, _FACE_SIDE / max(width, height))
    if scale > 1:
        near = near.resize((round(near.width * scale), round(near.height * scale)), Image.Resampling.BICUBIC)
    edges = [round((edge - origin) * scale) for edge, origin in zip(box, (left, top, left, top), strict=True)]
    pixels = np.asarray(near)
    return Face(pixels, _predictor()(pixels, dlib.rectangle(*edges)), (left, top), scale)


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
    if side < size:
        reasons.append(f"its face is small ({side:.0f} pixels, the model has {size})")
    if abs(face.turn) > _TURNED:
        reasons.append("its face is turned away")
    return f"{' and '.join(reasons)}: the edit may not fit" if reasons else None
