"""Where a crop lies in its photo: what cutting out leaves behind, so that an edit can be put back."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Corner = tuple[float, float]
Box = tuple[int, int, int, int]  # left, top, right, bottom
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
    def centre(cls, width: int, height: int) -> "Place":
        """The place of a photo's central square, which of a square one is all of it."""
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        right, bottom = left + side, top + side
        edge: Edge = "none" if width == height else "left and right" if width > height else "top and bottom"
        return cls(((left, top), (right, top), (right, bottom), (left, bottom)), edge)

    @property
    def side(self) -> float:
        """Pixels of the photo along the crop's upper edge."""
        return float(np.linalg.norm(np.subtract(self.corners[1], self.corners[0])))

    @property
    def outline(self) -> Box:
        """(left, top, right, bottom): the smallest box of whole pixels that covers the crop, in the photo or not."""
        low, high = np.floor(np.min(self.corners, axis=0)), np.ceil(np.max(self.corners, axis=0))
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    def box(self, width: int, height: int) -> Box:
        """The part of the outline that a photo of this size has."""
        left, top, right, bottom = (
            min(max(edge, 0), most) for edge, most in zip(self.outline, (width, height) * 2, strict=True)
        )
        return left, top, right, bottom

    def scaled(self, across: float, down: float) -> "Place":
        """The same place in the photo resized by these factors."""
        a, b, c, d = ((x * across, y * down) for x, y in self.corners)
        return Place((a, b, c, d), self.edge)

    def to_crop(self, size: float) -> np.ndarray:
        """(2, 3) affine map from the photo's coordinates to those of the crop, which is `size` wide."""
        origin, right, down = (np.array(self.corners[i]) for i in (0, 1, 3))
        inverse = np.linalg.inv(np.stack([right - origin, down - origin], axis=1)) * size
        return np.column_stack([inverse, -inverse @ origin])
