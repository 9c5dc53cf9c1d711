"""Strong random augmentation of batches, so that a network learns what a face shows and not how it was photographed."""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Distort images (B, 3, H, W) in [0, 1] each in its own way: geometry, colour, sharpness, noise and cut-out."""
    images = warp(images, generator)
    images = recolour(images, generator)
    images = refocus(images, generator)
    images = add_noise(images, generator)
    return cut_out(images, generator).clamp(0, 1)


def warp(images: Tensor, generator: Generator) -> Tensor:
    """Mirror half of the images; rotate by up to 15 degrees, scale by 0.85 to 1.18, shift by up to 7 %, shear."""
    count = len(images)
    angle = _between(count, -math.pi / 12, math.pi / 12, generator) * _chance(count, 0.8, generator)
    scale = torch.exp(_between(count, -0.165, 0.165, generator))
    mirror = 1 - 2 * _chance(count, 0.5, generator)
    stretch = torch.exp(_between(count, -0.08, 0.08, generator))
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shear = _between(count, -0.08, 0.08, generator)
    shift = _between(2 * count, -0.14, 0.14, generator).view(count, 2)
    rows = [cos * mirror * stretch, shear - sin, shift[:, 0], (sin + shear) * mirror, cos / stretch, shift[:, 1]]
    theta = torch.stack(rows, 1).view(count, 2, 3)
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def recolour(images: Tensor, generator: Generator) -> Tensor:
    """Change brightness, contrast, saturation, the tint of each channel; a tenth becomes grey."""
    count = len(images)
    grey = images.mean(1, keepdim=True)
    saturation = _between(count, 0.4, 1.5, generator) * (1 - _chance(count, 0.1, generator))
    images = grey + (images - grey) * _per_image(saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    tint = 1 + _between(3 * count, -0.15, 0.15, generator).view(count, 3, 1, 1)
    contrast, shift = _between(count, 0.6, 1.5, generator), _between(count, -0.2, 0.2, generator)
    return (mean + _per_image(shift) + (images - mean) * _per_image(contrast)) * tint


def refocus(images: Tensor, generator: Generator) -> Tensor:
    """Blur or sharpen a third of the images, and lower the resolution of one in eight."""
    chosen = torch.rand(len(images), generator=generator) < 1 / 3
    amount = _between(int(chosen.sum()), -0.6, 1.0, generator)
    images[chosen] = torch.lerp(images[chosen], _blurred(images[chosen]), _per_image(amount))
    chosen = torch.rand(len(images), generator=generator) < 1 / 8
    coarse = interpolate(images[chosen], scale_factor=0.5, mode="area")
    images[chosen] = interpolate(coarse, size=images.shape[-2:], mode="bilinear")
    return images


def add_noise(images: Tensor, generator: Generator) -> Tensor:
    """Add Gaussian noise of a standard deviation up to 0.1 to a third of the images."""
    chosen = torch.rand(len(images), generator=generator) < 1 / 3
    sigma = _between(int(chosen.sum()), 0, 0.1, generator)
    images[chosen] += torch.randn(images[chosen].shape, generator=generator) * _per_image(sigma)
    return images


def cut_out(images: Tensor, generator: Generator) -> Tensor:
    """Cover a rectangle, of sides up to 40 % of the image, in four in ten images with one random colour."""
    count, _, height, width = images.shape
    size = _between(2 * count, 0.1, 0.4, generator).view(2, count) * _chance(count, 0.4, generator)
    centre = _between(2 * count, 0, 1, generator).view(2, count)
    across = (torch.linspace(0, 1, width) - centre[0, :, None]).abs() < size[0, :, None] / 2
    down = (torch.linspace(0, 1, height) - centre[1, :, None]).abs() < size[1, :, None] / 2
    hole = (down[:, None, :, None] & across[:, None, None, :]).to(images)
    colour = _between(3 * count, 0, 1, generator).view(count, 3, 1, 1)
    return images + (colour - images) * hole


def _blurred(images: Tensor) -> Tensor:
    """Filter with (1, 4, 6, 4, 1) / 16 along both sides; slices are several times faster than a grouped convolution."""
    for side in (2, 3):
        for _ in range(2):
            first, last = images.narrow(side, 0, 1), images.narrow(side, -1, 1)
            before = torch.cat([first, images.narrow(side, 0, images.shape[side] - 1)], side)
            after = torch.cat([images.narrow(side, 1, images.shape[side] - 1), last], side)
            images = (before + after + 2 * images) / 4
    return images


def _between(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _chance(count: int, probability: float, generator: Generator) -> Tensor:
    return (torch.rand(count, generator=generator) < probability).float()


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
