"""Edits put back into photos at their own resolution: only the difference, under a soft mask.

What an edit changes is smooth; what makes a photo sharp is not touched. So the difference of the edited and the
reconstructed crop is enlarged, warped back and added to the photo, which keeps every detail it had. Where the
difference is zero, or the mask is, pixels keep their bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from directions.photo.crop import Box, Edge, Place

_FADE_FROM, _FADE_TO = 0.62, 0.98  # distance from the crop's centre (1: its edge) where a face's mask starts to fade
_ROUNDNESS = 2.6  # exponent of the mask's superellipse: 2 is an ellipse, more is squarer
_SIDE_FADE = 0.85  # the same where a crop is a photo's central square
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's own conversion to grey
_ENLARGED = 4  # a small difference is first enlarged by this factor, which leaves no squares
_BAND_PIXELS = 1 << 20  # of the photo, changed at once


@dataclass(frozen=True, eq=False)
class Patch:
    """A change of one crop: `difference` (size, size, 3) float32, edited - reconstructed in [-2, 2], and its place."""

    difference: np.ndarray
    place: Place

    @property
    def is_empty(self) -> bool:
        """Whether nothing was changed."""
        return not self.difference.any()


def composite(pixels: Image.Image, patches: Sequence[Patch]) -> Image.Image:
    """Return a photo (RGB, RGBA, L, LA, CMYK or I;16) with patches added, of its own size and mode.

    Pixels outside the patches' masks keep their bytes, as all do where a difference is zero. Where masks overlap, as
    those of two heads side by side, they share, so that nothing is added twice.
    """
    result = pixels.copy()
    patches = [patch for patch in patches if not patch.is_empty]
    for patch in patches:
        others = [other.place for other in patches if other is not patch]
        channels = to_size(patch)
        for band in _bands(patch.place.box(*pixels.size)):
            change = warp(channels, patch.place, band) * _weight(patch.place, others, band)[..., None]
            region = np.asarray(result.crop(band))
            result.paste(_image(add(region, change, pixels.mode), pixels.mode), band[:2])
    return result


def _bands(box: Box) -> Iterator[Box]:
    """A box in parts of a few rows, so that a large face takes no more memory than a small one."""
    left, top, right, bottom = box
    rows = max(1, _BAND_PIXELS // max(right - left, 1))
    for start in range(top, bottom if right > left else top, rows):
        yield left, start, right, min(start + rows, bottom)


def _weight(place: Place, others: Sequence[Place], box: Box) -> np.ndarray:
    """(height, width): the mask of a place, less where others' masks are too (m^2 / sum m)."""
    own = total = mask(place, box)
    left, top, right, bottom = box
    for other in others:
        a, b, c, d = other.outline
        if a < right and left < c and b < bottom and top < d:
            total = total + mask(other, box)
    return own * own / np.maximum(total, 1e-6)


def mask(place: Place, box: Box) -> np.ndarray:
    """(height, width) float32 in [0, 1]: how much of a patch is taken at each pixel of a box of the photo."""
    left, top, right, bottom = box
    x, y = np.arange(left, right) + 0.5, np.arange(top, bottom)[:, None] + 0.5
    (a, b, c), (d, e, f) = place.to_crop(2.0)
    u, v = np.abs(a * x + b * y + c - 1), np.abs(d * x + e * y + f - 1)
    inside = (u <= 1) & (v <= 1)
    return np.where(inside, _fade(u, v, place.edge), 0).astype(np.float32)


def _fade(u: np.ndarray, v: np.ndarray, edge: Edge) -> np.ndarray:
    """The mask by distances (0 at the centre, 1 at the edges) across and down the crop."""
    if edge == "none":
        return np.ones_like(u)
    if edge == "face":
        return _falling((u**_ROUNDNESS + v**_ROUNDNESS) ** (1 / _ROUNDNESS), _FADE_FROM, _FADE_TO)
    return _falling(u if edge == "left and right" else v, _SIDE_FADE, 1.0)


def _falling(r: np.ndarray, start: float, end: float) -> np.ndarray:
    """1 up to `start`, 0 from `end` on, smoothly (cubic) between."""
    s = np.clip((end - r) / (end - start), 0, 1)
    return s * s * (3 - 2 * s)


def to_size(patch: Patch) -> list[Image.Image]:
    """The channels of a difference, larger or smaller, as warping needs them: by bicubic steps of half to two."""
    channels = [Image.fromarray(np.ascontiguousarray(patch.difference[..., i])) for i in range(3)]
    width, side = channels[0].width, patch.place.side
    if width / 2 <= side <= 2 * width:
        return channels
    target = width * _ENLARGED if side > width else max(1, round(side))
    return [channel.resize((target, target), Image.Resampling.BICUBIC) for channel in channels]


def warp(channels: Sequence[Image.Image], place: Place, box: Box) -> np.ndarray:
    """(height, width, 3) float32: a crop's channels at the pixels of a box of the photo; 0 outside the crop."""
    left, top, right, bottom = box
    matrix = place.to_crop(channels[0].width)
    matrix[:, 2] += matrix[:, :2] @ (left, top)
    way = ((right - left, bottom - top), Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.BICUBIC)
    return np.stack([np.asarray(channel.transform(*way)) for channel in channels], -1)


def add(region: np.ndarray, change: np.ndarray, mode: str) -> np.ndarray:
    """Add a change (H, W, 3), RGB in units of [-1, 1], to pixels of a mode; alpha and black ink stay as they are."""
    if mode == "CMYK":
        return _add_to_ink(region, change)
    values = region if region.ndim == 3 else region[..., None]
    colours = change if mode in ("RGB", "RGBA") else (change @ _LUMA)[..., None]
    top = np.iinfo(region.dtype).max
    shown = values[..., : colours.shape[-1]].astype(np.float32) + colours * (top / 2)
    result = values.copy()
    result[..., : colours.shape[-1]] = np.clip(np.rint(shown), 0, top).astype(region.dtype)
    return result.reshape(region.shape)


def _add_to_ink(region: np.ndarray, change: np.ndarray) -> np.ndarray:
    """CMYK: a colour is (1 - ink) (1 - black), so that the same black needs more ink for the same change."""
    light = np.maximum(255 - region[..., 3:].astype(np.float32), 1) / 255
    ink = region[..., :3].astype(np.float32) - change * 127.5 / light
    return np.concatenate([np.clip(np.rint(ink), 0, 255).astype(np.uint8), region[..., 3:]], -1)


def _image(values: np.ndarray, mode: str) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(values))  # 2 channels are LA, 4 are RGBA
    if mode == "CMYK":
        return Image.frombytes("CMYK", image.size, values.tobytes())
    return image
