"""A face looked at closely: dlib's 68 landmarks, and what they say of how it lies and whether it is one."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

CHIP_SIZE, CHIP_PADDING = 200, 0.2  # get_face_chip(size=200, padding=0.2), as the model's photos were cut
# Where the detector sees the face of an aligned photo, in fractions of the side: the mean over UTKFace's test photos.
ALIGNED_BOX = (0.041, 0.034, 0.957, 0.950)

Box = tuple[float, ...]  # left, top, right, bottom of a face in its photo

_FACE_SIDE = 200  # pixels a face should have when its landmarks are placed, since these are whole pixels
# How a box is moved, in fractions of its side, and enlarged, to see whether landmarks stay where they are.
_MOVED = ((0, 0, 1.0), (0.1, 0, 1.0), (-0.1, 0, 1.0), (0, 0.1, 1.0), (0, -0.1, 1.0), (0, 0, 1.15), (0, 0, 0.87))


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
    def side(self) -> float:
        """Pixels of the photo along the chip's upper edge."""
        return float(np.linalg.norm(self.corners[1] - self.corners[0]))

    @property
    def turn(self) -> float:
        """How far it is turned, by its landmarks: 0 frontal, -1 and 1 the nose at an end of the jaw."""
        jaw_left, jaw_right, nose = (np.array([point.x, point.y]) for point in map(self.shape.part, (0, 16, 30)))
        across = jaw_right - jaw_left
        return float(2 * np.dot(nose - jaw_left, across) / max(np.dot(across, across), 1e-9) - 1)


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
    return Face(pixels, predictor()(pixels, dlib.rectangle(*edges)), (left, top), scale)


def aligned_landmarks(photo: Image.Image) -> np.ndarray:
    """(68, 2): the landmarks of an aligned RGB photo, x and y in fractions of its side; no face is looked for."""
    import dlib

    side = CHIP_SIZE
    pixels = np.asarray(photo.resize((side, side), Image.Resampling.BICUBIC))
    shape = predictor()(pixels, dlib.rectangle(*(round(fraction * side) for fraction in ALIGNED_BOX)))
    return np.array([(point.x, point.y) for point in shape.parts()]) / side


def wandering(photo: Image.Image, box: Box) -> float:
    """How far landmarks wander (root mean square, in sides of the box) if they are placed from boxes nearby.

    On a face they find it again: half of the faces in which the detector is sure have less than 0.01. What looks like a
    face by chance has nothing to find: 0.06 to 0.12.
    """
    left, top, right, bottom = box
    side, points = right - left, []
    for across, down, factor in _MOVED:
        x, y, half = (left + right) / 2 + across * side, (top + bottom) / 2 + down * side, factor * side / 2
        face = look(photo, (x - half, y - half, x + half, y + half))
        points.append(np.array([(point.x, point.y) for point in face.shape.parts()]) / face.scale + face.origin)
    return float(np.sqrt(np.var(points, axis=0).sum(-1).mean()) / side)


@lru_cache(maxsize=1)
def predictor() -> Any:
    """dlib's predictor of 68 landmarks."""
    import dlib
    import face_recognition_models

    return dlib.shape_predictor(face_recognition_models.pose_predictor_model_location())
