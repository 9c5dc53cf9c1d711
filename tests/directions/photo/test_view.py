"""Edits seen in their photo: the part that is shown, and how large it is."""

import numpy as np
import pytest
from PIL import Image

from directions.photo import view
from directions.photo.composite import Patch, composite
from directions.photo.crop import Place
from directions.photo.view import region, views
from tests.helpers.pictures import picture


def square(left: float, top: float, side: float) -> Place:
    corners = (left, top), (left + side, top), (left + side, top + side), (left, top + side)
    return Place(corners, "face")


FACES = square(40, 30, 20), square(80.5, 50.5, 30)


def patches(change: float) -> list[Patch]:
    return [Patch(np.full((16, 16, 3), change, np.float32), place) for place in FACES]


def test_the_region_holds_all_faces_and_somewhat_more() -> None:
    assert region(FACES, 160, 120) == (40 - 21, 30 - 21, 111 + 21, 81 + 21)
    assert region(FACES, 112, 82) == (19, 9, 112, 82)
    assert region((), 160, 120) == (0, 0, 160, 120)


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "CMYK", "RGBA"])
def test_views_are_the_photos_own_pixels(mode: str) -> None:
    photo = picture(mode)
    seen = views(photo, [patches(-0.5), patches(0), patches(0.5)])
    box = region(FACES, *photo.size)
    for image, change in zip(seen, (-0.5, 0, 0.5), strict=True):
        whole = view.to_rgb(composite(photo, patches(change))).crop(box)
        assert image.mode == "RGB" and image.size == whole.size
        assert np.abs(np.asarray(image, int) - np.asarray(whole)).max() <= 2
    assert len({image.tobytes() for image in seen}) == 3


@pytest.mark.parametrize(("count", "side"), [(2, 1024), (100, 632)])
def test_large_regions_are_reduced(count: int, side: int) -> None:
    change = [Patch(np.zeros((16, 16, 3), np.float32), square(0, 0, 3000))]
    for image in views(Image.new("RGB", (3000, 1500)), [change] * count):
        assert image.size == (side, side // 2)
