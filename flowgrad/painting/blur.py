"""f, the painting function of GradOP (Singh et al., CVPR 2023): an image seen with half-closed eyes."""

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

SIGMA, SIDE = 7.0, 512  # the official Gaussian's deviation, in pixels of an image of this side


def deviation(images: Tensor) -> float:
    """The deviation of f in pixels of images (B, C, H, W): the official 7 of 512, scaled with the width."""
    return SIGMA * images.shape[-1] / SIDE


def blur(images: Tensor, sigma: float | None = None) -> Tensor:
    """f(x): Gaussian blur of images (B, C, H, W), differentiable, with mirrored edges; sigma: in pixels, else f's."""
    sigma = deviation(images) if sigma is None else sigma
    radius = min(max(1, round(3 * sigma)), min(images.shape[-2:]) - 1)  # a mirror has no more than the image
    return gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)


def unfaithfulness(images: Tensor, strokes: Tensor) -> Tensor:
    """(B,) mean squares of f(x) - f(y), for images x (B, 3, H, W) and strokes y (1 or B, 3, H, W) in [-1, 1].

    The strokes are blurred as the images are: their hard edges are no part of what is asked for, and 0 can be reached.
    """
    return (blur(images) - blur(strokes)).square().flatten(1).mean(1)


@torch.no_grad()
def rmse(images: Tensor, strokes: Tensor) -> Tensor:
    """(B,) root mean squares of f(x) - f(y) in units of the whole range from black to white: 0 is faithful."""
    return unfaithfulness(images, strokes).sqrt() / 2
