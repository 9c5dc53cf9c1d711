"""Where a crop lies in its photo: what cutting out leaves behind, so that an edit can be put back."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Corner = tuple[float, float]
Edge = Literal["face", "left and right", "top and bottom", "none"]


@dataclass(frozen=True)
class Place:
    """A square crop's corners (x, y) in the photo, clockwise from the crop's upper left; pixel i spans i to i + 1.

    edge: how an edit of the crop fades into the photo: around the "face", towards the two sides where the photo goes
    on, or "none" where the crop is the whole photo.
    """

    corners: tuple[Corner, Corner, Corner, Corner]
    edge: Edge

    @classmethod
    def whole(cls, width: float, height: float) -> "Place":
        """The place of a crop that is the photo itself, resized."""
        return cls(_rectangle(0, 0, width, height), "none")

    @classmethod
    def centre(cls, width: int, height: int) -> "Place":
        """The place of a photo's central square."""
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        edge: Edge = "none" if width == height else "left and right" if width > height else "top and bottom"
        return cls(_rectangle(left, top, left + side, top + side), edge)

    @property
    def side(self) -> float:
        """Pixels of the photo along the crop's upper edge."""
        return float(np.linalg.norm(np.subtract(self.corners[1], self.corners[0])))

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom): the smallest box of a photo's whole pixels that covers the crop."""
        low, high = np.floor(np.min(self.corners, axis=0)), np.ceil(np.max(self.corners, axis=0))
        (left, top), (right, bottom) = np.clip(low, 0, (width, height)), np.clip(high, 0, (width, height))
        return int(left), int(top), int(right), int(bottom)

    def to_crop(self, size: float) -> np.ndarray:
        """(2, 3) affine map from the photo's coordinates to those of the crop, which is `size` wide."""
        origin, right, down = (np.array(self.corners[i]) for i in (0, 1, 3))
        inverse = np.linalg.inv(np.stack([right - origin, down - origin], axis=1)) * size
        return np.column_stack([inverse, -inverse @ origin])


def _rectangle(left: float, top: float, right: float, bottom: float) -> tuple[Corner, Corner, Corner, Corner]:
    return (left, top), (right, top), (right, bottom), (left, bottom)
