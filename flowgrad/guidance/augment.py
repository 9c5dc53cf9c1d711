"""Random differentiable augmentations: a score that many views agree on is hard to fool (FuseDream's AugCLIP)."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def augment(images: Tensor, copies: int, rng: torch.Generator) -> Tensor:
    """(copies * B, C, H, W) random views of images (B, C, H, W) in [-1, 1], copy by copy.

    Each view has its own flip, rotation (15 degrees at most), scale (0.8 to 1.2), shift (a tenth of the side),
    brightness, contrast, and one grey square cut out.
    """
    views = images.repeat(copies, 1, 1, 1)
    return _cutout(_colour(_affine(views, rng), rng), rng)


def _uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, rng: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng, device=like.device, dtype=like.dtype)


def _affine(x: Tensor, rng: torch.Generator) -> Tensor:
    n = (len(x),)
    flip = _uniform(n, -1, 1, x, rng).sign()
    angle = _uniform(n, -0.26, 0.26, x, rng)
    scale = _uniform(n, 0.8, 1.2, x, rng)
    dx, dy = _uniform(n, -0.2, 0.2, x, rng), _uniform(n, -0.2, 0.2, x, rng)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([torch.stack([cos * flip, -sin, dx], -1), torch.stack([sin * flip, cos, dy], -1)], -2)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _colour(x: Tensor, rng: torch.Generator) -> Tensor:
    shape = (len(x), 1, 1, 1)
    brightness, contrast = _uniform(shape, -0.2, 0.2, x, rng), _uniform(shape, 0.75, 1.25, x, rng)
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * contrast + mean + brightness


def _cutout(x: Tensor, rng: torch.Generator, side: float = 0.25) -> Tensor:
    height, width = x.shape[-2:]
    top, left = (_uniform((len(x), 1), -side, 1, x, rng) for _ in range(2))
    rows = torch.arange(height, device=x.device, dtype=x.dtype) / height
    columns = torch.arange(width, device=x.device, dtype=x.dtype) / width
    inside_rows = (rows >= top) & (rows < top + side)
    inside_columns = (columns >= left) & (columns < left + side)
    return x.masked_fill((inside_rows[:, None, :, None] & inside_columns[:, None, None, :]), 0.0)
