"""Faces found in a photo: dlib's detector at several scales, and a second look at what it doubts.

The detector wants faces of 80 pixels or more, and misses some large ones that it sees in a smaller copy. So a photo is
looked at in copies of several sizes, and a face counts once, as the look saw it that was surest of it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from directions.photo.landmarks import Box, wandering

# The longer side, in pixels, of the copies that are looked at. A look at a square photo takes 0.01 s, 0.03 s, 0.1 s and
# half a second of one core. There are no more, so that a photo's time is bounded, and no result depends on a clock.
_SIDES = (320, 640, 1280, 2560)
FINEST = _SIDES[-1]  # a photo's longer side of which more pixels show no other face
_ENLARGED = 2.5  # at most, after the first look: further on there is nothing new to see
_MARGIN = 0.2  # of the side, around a face that fills the photo

_WEAKEST = -0.2  # the detector's score of what is looked at once more; it calls a face what has more than 0
_SURE = 0.7  # the score from which on a single look is enough
_UNSEEN = -0.5  # the score of what a second look does not see
_CLOSE = (90, 110)  # pixels that a face has in the second looks
# The mean score from which on a doubtful face is one; the one that is enough if its landmarks wander less than _STEADY.
_CONFIRMED, _LIKELY, _STEADY = 0.25, 0.05, 0.055
_SHARED = 0.4  # of the smaller of two boxes: more is one face
_SAME = 0.4  # intersection over union of a box and what the second look sees there


@dataclass(frozen=True)
class _Seen:
    """What the detector took for a face: its box in the photo, and how sure it was."""

    box: Box
    score: float


def find_faces(photo: Image.Image) -> list[Box]:
    """Return where the faces of an RGB photo are, the largest first. Needs the extra `faces`."""
    faces = [face for face in _apart(_seen(photo)) if face.score >= _SURE or _confirmed(photo, face)]
    return sorted((face.box for face in faces), key=lambda box: box[2] - box[0], reverse=True)


def _seen(photo: Image.Image) -> Iterator[_Seen]:
    """What each look sees; one with a margin if the first one sees nothing."""
    longest = max(photo.size)
    first = list(_look(photo, _SIDES[0] / longest))
    yield from first or _look(photo, _SIDES[0] / longest, _MARGIN)
    for side in _SIDES[1:]:
        if side <= _ENLARGED * longest:
            yield from _look(photo, side / longest)


def _look(photo: Image.Image, scale: float, margin: float = 0.0, weakest: float = _WEAKEST) -> Iterator[_Seen]:
    """What the detector sees of a photo at `scale`, with a margin (fraction of the side), scored `weakest` or more."""
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    pad = round(margin * max(size))
    pixels = np.asarray(photo.resize(size, Image.Resampling.BICUBIC))
    squares, scores, _ = detector().run(np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="edge"), 0, weakest)
    for square, score in zip(squares, scores, strict=True):
        edges = (square.left(), square.top(), square.right() + 1, square.bottom() + 1)
        yield _Seen(tuple((edge - pad) / scale for edge in edges), score)


def _apart(faces: Iterable[_Seen]) -> list[_Seen]:
    """The surest of each group of boxes that lie over one another."""
    kept: list[_Seen] = []
    for face in sorted(faces, key=lambda face: face.score, reverse=True):
        if all(_common(face.box, other.box) < _SHARED * min(_area(face.box), _area(other.box)) for other in kept):
            kept.append(face)
    return kept


def _confirmed(photo: Image.Image, face: _Seen) -> bool:
    """Whether the detector sees a face again, at its own best sizes and in the mirror, or half so and landmarks too."""
    left, top, right, bottom = face.box
    side = right - left
    near = photo.crop((round(left - side), round(top - side), round(right + side), round(bottom + side)))
    there = (near.width - side) / 2
    box, scores = (there, there, there + side, there + side), [face.score]
    for picture in (near, near.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        for close in _CLOSE:
            seen = _look(picture, close / side, weakest=_UNSEEN)
            scores.append(max((again.score for again in seen if overlap(box, again.box) > _SAME), default=_UNSEEN))
    mean = sum(scores) / len(scores)
    return mean > _CONFIRMED or (mean > _LIKELY and wandering(photo, face.box) < _STEADY)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    common = _common(a, b)
    return common / max(_area(a) + _area(b) - common, 1e-9)


def _common(a: Box, b: Box) -> float:
    left, top, right, bottom = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return max(right - left, 0) * max(bottom - top, 0)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


@lru_cache(maxsize=1)
def detector() -> Any:
    """dlib's detector of frontal faces."""
    import dlib

    return dlib.get_frontal_face_detector()
