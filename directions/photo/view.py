"""Edits seen where they are: the part of a photo around its faces, at the photo's own resolution."""

import math
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from directions.photo.composite import Patch, composite
from directions.photo.crop import Box, Place
from flowgrad.images import to_rgb

VIEW_SIDE = 1024  # pixels that a view has at most along its longer side
VIEWS_PIXELS = 40_000_000  # that all views of a photo have at most
_AROUND = 0.3  # of the region's side, shown beyond it


def views(pixels: Image.Image, versions: Sequence[Sequence[Patch]]) -> list[Image.Image]:
    """The region of a photo around all patches with each version's patches added, as RGB images of one size.

    The region has the photo's own pixels; a larger one than VIEW_SIDE is reduced, and so are many, to VIEWS_PIXELS.
    """
    box = region([patch.place for patches in versions for patch in patches], *pixels.size)
    part = pixels.crop(box)
    return [_bounded(composite(part, [_moved(patch, box) for patch in p]), len(versions)) for p in versions]


def region(places: Sequence[Place], width: int, height: int) -> Box:
    """The smallest box of a photo that holds the places, and somewhat more around them; all of it for no place."""
    if not places:
        return 0, 0, width, height
    outlines = [place.outline for place in places]
    left, top = (min(outline[i] for outline in outlines) for i in (0, 1))
    right, bottom = (max(outline[i] for outline in outlines) for i in (2, 3))
    more = round(_AROUND * max(right - left, bottom - top))
    return max(left - more, 0), max(top - more, 0), min(right + more, width), min(bottom + more, height)


def _moved(patch: Patch, box: Box) -> Patch:
    a, b, c, d = ((x - box[0], y - box[1]) for x, y in patch.place.corners)
    return replace(patch, place=replace(patch.place, corners=(a, b, c, d)))


def _bounded(image: Image.Image, count: int) -> Image.Image:
    side = min(VIEW_SIDE, math.isqrt(VIEWS_PIXELS // count))
    image = to_rgb(image)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image
