"""Random differentiable augmentations: a score that many views agree on is hard to fool (FuseDream's AugCLIP)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Draw = Callable[..., Tensor]  # low, high, *D -> (copies * B, *D) uniform numbers


def augment(
    images: Tensor, copies: int, rng: torch.Generator, count: int | None = None, rows: slice = slice(None)
) -> Tensor:
    """(copies * B, C, H, W) random views of images (B, C, H, W) in [-1, 1], copy by copy.

    The images are `rows` of `count`; the numbers are drawn for all of them, so that an image's views do not depend on
    which are seen together. Each view has its own flip, rotation (15 degrees at most), scale (0.8 to 1.2), shift (a
    tenth of the side), brightness, contrast, and one grey square cut out.
    """
    shape = (copies, len(images) if count is None else count)

    def draw(low: float, high: float, *more: int) -> Tensor:
        every = torch.rand(*shape, *more, generator=rng, device=images.device, dtype=images.dtype)
        return (low + (high - low) * every[:, rows]).flatten(0, 1)

    views = images.repeat(copies, 1, 1, 1)
    return _cutout(_colour(_affine(views, draw), draw), draw)


def _affine(x: Tensor, draw: Draw) -> Tensor:
    flip = draw(-1, 1).sign()
    angle = draw(-0.26, 0.26)
    scale = draw(0.8, 1.2)
    dx, dy = draw(-0.2, 0.2), draw(-0.2, 0.2)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([torch.stack([cos * flip, -sin, dx], -1), torch.stack([sin * flip, cos, dy], -1)], -2)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _colour(x: Tensor, draw: Draw) -> Tensor:
    brightness, contrast = draw(-0.2, 0.2, 1, 1, 1), draw(0.75, 1.25, 1, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * contrast + mean + brightness


def _cutout(x: Tensor, draw: Draw, side: float = 0.25) -> Tensor:
    height, width = x.shape[-2:]
    top, left = (draw(-side, 1, 1) for _ in range(2))
    rows = torch.arange(height, device=x.device, dtype=x.dtype) / height
    columns = torch.arange(width, device=x.device, dtype=x.dtype) / width
    inside_rows = (rows >= top) & (rows < top + side)
    inside_columns = (columns >= left) & (columns < left + side)
    return x.masked_fill((inside_rows[:, None, :, None] & inside_columns[:, None, None, :]), 0.0)
