"""Faces by dlib: found, and cut out as the model's own photos are. The extra `faces` is imported when first used."""

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from directions.photo.crop import Place
from flowgrad.errors import FlowgradError

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


Box = tuple[float, ...]


@dataclass(frozen=True)
class Face:
    """A face in a photo: `box` (left, top, right, bottom) and `landmarks` (68 points (x, y)), in the photo's pixels."""

    box: Box
    landmarks: tuple[tuple[float, float], ...]


def available() -> bool:
    """Return whether the extra `faces` is installed."""
    return find_spec("dlib") is not None and find_spec("face_recognition_models") is not None


def require() -> None:
    """Raise FlowgradError unless the extra `faces` is installed."""
    if not available():
        raise FlowgradError("looking at faces needs dlib, which is not installed. Run: pip install 'flowgrad[faces]'")


def warm_up() -> None:
    """Load dlib's models, which takes 2 s, before the first photo is there."""
    _detector(), _predictor()


def find_faces(photo: Image.Image) -> list[Face]:
    """Return the faces of an RGB photo, the largest first. Raises FlowgradError without the extra `faces`."""
    require()
    longest = max(photo.size)
    for side, margin in _LOOKS:
        if side > _LOOKS[0][0] and side > 2 * longest:  # enlarging it further shows nothing new
            break
        boxes = _detect(photo, side / longest, margin)
        if boxes:
            return [Face(box, _landmarks(photo, box)) for box in boxes]
    return []


def cut_out(photo: Image.Image, face: Face, size: int = CHIP_SIZE) -> tuple[Image.Image, Place]:
    """Return `face` upright and centred, size x size, and where in the photo it was cut out.

    It is dlib's `get_face_chip` with the padding of the model's photos.
    """
    import dlib

    pixels, shape, (left, top), scale = _look_closely(photo, face.box)
    chip = Image.fromarray(dlib.get_face_chip(pixels, shape, size=size, padding=CHIP_PADDING))
    corners = _chip_corners(shape)
    centre = corners.mean(0)
    edges = centre + (corners - centre) * size / (size - 1) + 0.5  # dlib's corners are those of pixels' centres
    a, b, c, d = ((float(x), float(y)) for x, y in edges / scale + (left, top))
    return chip, Place((a, b, c, d), "face")


def oddity(face: Face, side: float, size: int) -> str | None:
    """What may go wrong with a face `side` pixels wide, as it is cut out, in a model of `size` pixels; or None."""
    reasons = []
    if side < size:
        reasons.append(f"its face is small ({side:.0f} pixels, the model has {size})")
    if abs(turn(face)) > _TURNED:
        reasons.append("its face is turned away")
    return f"{' and '.join(reasons)}: the edit may not fit" if reasons else None


def turn(face: Face) -> float:
    """How far a face is turned, by its landmarks: 0 frontal, -1 and 1 the nose at an end of the jaw."""
    jaw_left, jaw_right, nose = (np.array(face.landmarks[i]) for i in (0, 16, 30))
    across = jaw_right - jaw_left
    return float(2 * np.dot(nose - jaw_left, across) / max(np.dot(across, across), 1e-9) - 1)


def is_aligned(photo: Image.Image, face: Face) -> bool:
    """Return whether aligning a photo at its `face` would change next to nothing.

    Its landmarks are placed as if it were aligned; if it is, the chip cut out by them is the photo itself.
    """
    width, height = photo.size
    box = tuple(fraction * width for fraction in _ALIGNED_BOX)
    if width != height or _overlap(face.box, box) < _ALIGNED_OVERLAP:
        return False
    _, shape, (left, top), scale = _look_closely(photo, box)
    corners = _chip_corners(shape) / scale + (left, top)
    wanted = np.array([(0, 0), (width, 0), (width, height), (0, height)])
    return bool(np.linalg.norm(corners - wanted, axis=1).mean() < _ALIGNED_WITHIN * width)


@lru_cache(maxsize=1)
def _detector() -> Any:
    import dlib

    return dlib.get_frontal_face_detector()


@lru_cache(maxsize=1)
def _predictor() -> Any:
    import dlib
    import face_recognition_models

    return dlib.shape_predictor(face_recognition_models.pose_predictor_model_location())


def _detect(photo: Image.Image, scale: float, margin: float) -> list[Box]:
    """Return the boxes that the detector finds at `scale` with a margin (fraction of the side), the largest first."""
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    pad = round(margin * max(size))
    pixels = np.asarray(photo.resize(size, Image.Resampling.BICUBIC))
    squares = _detector()(np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="edge"), 0)
    squares = sorted(squares, key=lambda square: square.width(), reverse=True)
    edges = [(square.left(), square.top(), square.right() + 1, square.bottom() + 1) for square in squares]
    return [tuple((edge - pad) / scale for edge in box) for box in edges]


def _look_closely(photo: Image.Image, box: Box) -> tuple[np.ndarray, Any, tuple[int, int], float]:
    """Return the surroundings of `box` at a good size, the landmarks there, and their place: (left, top), scale."""
    import dlib

    width, height = box[2] - box[0], box[3] - box[1]
    left, top = max(0, round(box[0] - width)), max(0, round(box[1] - height))
    right, bottom = min(photo.width, round(box[2] + width)), min(photo.height, round(box[3] + height))
    near = photo.crop((left, top, right, bottom))
    scale = max(1.0, _FACE_SIDE / max(width, height))
    if scale > 1:
        near = near.resize((round(near.width * scale), round(near.height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(near)
    edges = [round((edge - origin) * scale) for edge, origin in zip(box, (left, top, left, top), strict=True)]
    return pixels, _predictor()(pixels, dlib.rectangle(*edges)), (left, top), scale


def _landmarks(photo: Image.Image, box: Box) -> tuple[tuple[float, float], ...]:
    _, shape, (left, top), scale = _look_closely(photo, box)
    return tuple((point.x / scale + left, point.y / scale + top) for point in shape.parts())


def _chip_corners(shape: Any) -> np.ndarray:
    """Return the corners (4, 2) of the chip that would be cut out, clockwise from the face's upper left."""
    import dlib

    chip = dlib.get_face_chip_details(shape, CHIP_SIZE, CHIP_PADDING)
    half = np.array([chip.rect.width(), chip.rect.height()]) / 2
    cos, sin = math.cos(chip.angle), math.sin(chip.angle)
    signs = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    centre = chip.rect.dcenter()
    return (signs * half) @ np.array([(cos, sin), (-sin, cos)]) + (centre.x, centre.y)


def _overlap(a: Box, b: Box) -> float:
    """Return intersection over union."""
    import dlib

    first, second = (dlib.drectangle(left, top, right - 1, bottom - 1) for left, top, right, bottom in (a, b))
    shared = first.intersect(second).area()
    return float(shared / (first.area() + second.area() - shared))
